"""train.py from end to end on a tiny task: what a run writes, and that it can be trusted."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from support import CLASSES, ROOT, metrics, write_images
from torch import nn

import finetune
from finetune import recipes
from finetune.training import loss, saved_checkpoints

PICTURES = ("augmentations", "calibration", "confusion", "curves", "per_class", "predictions", "top_losses")


def test_a_run_fills_its_folder(train, tmp_path, image_folder):
    code, output = train("--recipe", "finetune", "--tracker", "wandb", pictures=True)
    assert code == 0
    lines = metrics(output)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5",
        "val_macro_f1", "val_balanced_accuracy"
    }  # fmt: skip
    assert set(lines[0]["lr"]) == {"stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"}
    summary = json.loads((output / "summary.json").read_text())
    best = max(lines, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert summary["best_epoch"] == best["epoch"]
    assert summary["best_val_accuracy"] == best["val_accuracy"]
    assert (summary["train_images"], summary["val_images"], summary["epochs_run"]) == (21, 9, 2)
    assert (summary["precision"], summary["device"], summary["num_processes"]) == ("no", "cpu", 1)
    assert summary["stopped_early"] is False
    config = json.loads((output / "config.json").read_text())
    assert (config["recipe"], config["seed"], config["model"]) == ("finetune", 0, "shufflenet_v2_x0_5")
    assert torch.__version__.startswith(config["versions"]["torch"])
    metadata = json.loads((output / "model" / "model.json").read_text())
    assert metadata["classes"] == list(CLASSES)
    assert metadata["preprocess"]["crop"] == 32
    assert metadata["score"]["val_accuracy"] == best["val_accuracy"]
    for name in PICTURES:
        pixels = np.asarray(Image.open(output / "plots" / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5, f"{name}.png is blank"
    assert list((output / "wandb").glob("offline-run-*"))
    (tmp_path / "any").touch()
    tensors = list(output.rglob("*.safetensors"))
    assert len(tensors) == 12, tensors  # model, scores, and five in each of two checkpoints
    assert {path.stat().st_mode for path in tensors} == {(tmp_path / "any").stat().st_mode}


def test_the_saved_model_loads_into_torchvision_and_scores_what_was_reported(train, image_folder):
    code, output = train("--recipe", "finetune", "--lr", "3e-3", "--epochs", "3")
    assert code == 0
    plain = torchvision.models.shufflenet_v2_x0_5(weights=None)
    plain.fc = nn.Linear(1024, 3)
    plain.load_state_dict(load_file(output / "model" / "model.safetensors"), strict=True)
    metadata = json.loads((output / "model" / "model.json").read_text())
    own = metadata["preprocess"]
    v2 = torchvision.transforms.v2
    transform = v2.Compose([
        v2.PILToTensor(), v2.Resize(own["resize"]), v2.CenterCrop(own["crop"]),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(own["mean"], own["std"]),
    ])  # fmt: skip
    correct = [
        metadata["classes"][plain.eval()(transform(Image.open(path))[None]).argmax()] == path.parent.name
        for path in sorted((image_folder / "val").rglob("*.jpg"))
    ]
    assert len(correct) == 9
    assert sum(correct) / 9 == pytest.approx(metadata["score"]["val_accuracy"])


@pytest.mark.parametrize("recipe", ["feature_extractor", "finetune"])
def test_two_runs_are_equal_bit_for_bit_with_any_number_of_workers(train, recipe):
    results = []
    for flags in (("--workers", "0"), ("--workers", "2"), ("--workers", "0", "--eval-batch-size", "2")):
        code, output = train("--recipe", recipe, "--precision", "auto", *flags)
        assert code == 0
        results.append((metrics(output), load_file(output / "model" / "model.safetensors")))
    for lines, weights in results[1:2]:
        assert lines == results[0][0]
        assert all(torch.equal(weights[key], value) for key, value in results[0][1].items())
    # Another evaluation batch may round a logit differently, but trains the same.
    assert [line["train_loss"] for line in results[2][0]] == [line["train_loss"] for line in results[0][0]]


def test_another_seed_gives_another_run(train):
    first, second = (metrics(train("--seed", seed)[1]) for seed in ("0", "1"))
    assert first[0]["train_loss"] != second[0]["train_loss"]


# Train losses of three epochs. When one moves, the commit says why.
GOLDEN = {
    "best": [1.1004183, 1.0990433, 1.0973253],
    "concat_pool": [1.121526, 1.126589, 1.0907763],
    "feature_extractor": [1.1096818, 1.0998771, 1.0970218],
    "finetune": [1.1004183, 1.0990433, 1.0973253],
    "gradual_unfreeze": [1.1084725, 1.0991644, 1.0969882],
    "grayscale": [1.0989817, 1.0985813, 1.0984149],
    "last_layers": [1.103605, 1.0989643, 1.0968659],
    "layerwise_lr": [1.10847, 1.0991595, 1.0969917],
    "linear_then_finetune": [1.1157688, 1.0998735, 1.095901],
    "scratch": [1.1028692, 1.0911692, 1.0705869],
    "vgg_cifar10": [1.0988269, 1.0988169, 1.0984952],
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("recipe", recipes.NAMES)
def test_losses_are_the_pinned_ones(train, tmp_path, recipe):
    random, labels = np.random.default_rng(0), np.arange(21) % 3
    # Floats: without AVX2, uint8 images are resized by another kernel, which differs by whole levels.
    x = 0.6 * random.random((21, 40, 40, 3), dtype=np.float32)
    x[np.arange(21), ..., labels] += 0.15
    np.savez(path := tmp_path / "set.npz", x_train=x, y_train=labels, x_test=x[:6], y_test=labels[:6])
    flags = ["--recipe", recipe, "--epochs", "3", "--batch-size", "7", "--unfreeze-every", "1", "--head-epochs", "1"]
    # Random weights depend on the instruction set in their last digits, which BatchNorm would amplify.
    special = {"vgg_cifar10": ["--model", "vgg11", "--hidden", "8"], "scratch": ["--model", "squeezenet1_1"]}
    code, output = train(*flags, "--cache-gb", "0", *special.get(recipe, ["--weights", "starter"]), data=path)
    assert code == 0
    # In float32, rounding by instruction set and threads reaches the third digit: Adam divides gradients that are
    # nothing but rounding by their own size. In float64 its epsilon is far above them. The images' float32 is left, up
    # to 4e-7; one per cent more of a recipe's learning rate moves a loss by 3e-6 and more.
    assert [line["train_loss"] for line in metrics(output)] == pytest.approx(GOLDEN[recipe], rel=2e-6)


def test_the_rate_of_finetune_follows_the_held_out_loss_of_its_head(train, tmp_path, capsys):
    random = np.random.default_rng(0)
    noise, labels = random.random((24, 32, 32, 3), dtype=np.float32), np.arange(24)
    sure = noise * 0.1 + labels[:, None, None, None] % 2 * np.float32(0.8)
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeezenet.pth")
    unnormalised = ["--model", "squeezenet1_1", "--weights", str(tmp_path / "squeezenet.pth")]
    seen = 0
    for x, classes, net, least, most, per_nat in (
        (noise, 2, ["--weights", "starter"], 0.4, 1.6, 6e-4),
        (sure, 2, ["--weights", "starter"], 0.0, 0.3, 6e-4),  # the lowest rate
        (noise, 4, unnormalised, 0.7, 3.3, 3e-4),
    ):
        y = labels % classes
        np.savez(path := tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
        flags = ["--recipe", "finetune", "--epochs", "1", "--warmup", "0", "--schedule", "constant"]
        code, output = train(*flags, "--solver", "auto", *net, data=path)
        assert code == 0
        head, epoch = metrics(output)
        assert least < head["fold_loss"] < most
        rate = epoch["lr"]["head"]
        assert rate == pytest.approx(max(per_nat * head["fold_loss"], 2e-4))
        shown = " ".join(capsys.readouterr().out.split())
        assert f"peak learning rate {rate:g} (--lr auto)" in shown
        assert f"if the solved head's held-out loss is above {2e-4 / per_nat:.2g} " in shown
        seen += 1
    assert seen == 3


def test_a_test_split_is_scored_with_the_best_weights(train, tmp_path):
    for name, seed in (("train", 0), ("val", 1), ("test", 2)):
        write_images(tmp_path / "data" / name, 6, seed=seed)
    # The best epoch is the first: later ones diverge.
    flags = ("--recipe", "finetune", "--optimizer", "sgd", "--lr", "1.0", "--clip-norm", "1", "--epochs", "3")
    code, output = train(*flags, "--schedule", "constant", "--best-by", "loss", data=tmp_path / "data")
    assert code == 0
    summary = json.loads((output / "summary.json").read_text())
    history = metrics(output)
    assert summary["best_epoch"] < 3, "the last epoch's weights are others"
    model, transform, classes = finetune.load(output)
    paths = sorted((tmp_path / "data" / "test").rglob("*.jpg"))
    predicted = [classes[model(transform(path)).argmax()] for path in paths]
    correct = sum(name == path.parent.name for name, path in zip(predicted, paths, strict=True))
    assert len(paths) == 18
    assert summary["test_accuracy"] == pytest.approx(correct / 18)
    assert summary["best_val_loss"] == min(record["val_loss"] for record in history)


def test_auxiliary_heads_take_part_in_training(train, tmp_path):
    write_images(tmp_path / "data" / "train", 2)
    write_images(tmp_path / "data" / "val", 1, seed=1)
    flags = ("--model", "googlenet", "--image-size", "64", "--epochs", "1", "--recipe", "finetune")
    code, output = train(*flags, data=tmp_path / "data")
    assert code == 0
    # At the first step each head's loss is about ln 3: that of the main head, and 0.3 of each auxiliary one's.
    assert metrics(output)[0]["train_loss"] == pytest.approx(np.log(3) * 1.6, rel=0.05)
    saved = load_file(output / "model" / "model.safetensors")
    assert saved["aux1.fc2.weight"].abs().max() > 0
    assert saved["aux2.fc2.weight"].abs().max() > 0


def test_the_plan_trains_and_writes_nothing(train, capsys):
    code, output = train("--plan", "--recipe", "feature_extractor")
    shown = capsys.readouterr().out
    assert code == 0
    assert not output.exists()
    expected = ("stem", "stage 4", "head", "frozen", "from the start", "kept", "21 train, 9 val", "3: blue", "memory")
    assert [words for words in expected if words not in shown] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "resnet19"), "unknown model 'resnet19'. Did you mean"),
        (("--recipe", "feature_extracter"), "Did you mean feature_extractor"),
        (("--data", "nowhere"), "--data nowhere does not exist"),
        (("--weights", "nowhere.pth"), "--weights nowhere.pth: no such file"),
        (("--precision", "fp16"), "--precision fp16 needs a GPU"),
        (("--image-size", "32", "--model", "vgg11", "--weights", "none", "--epochs", "0"), "--epochs 0"),
        (("--model", "maxvit_t", "--image-size", "100"), "100"),
        (("--output", str(ROOT / "tests")), "exists already"),
    ],
)
def test_a_mistake_gets_one_message_exit_code_2_and_writes_nothing(train, capsys, tmp_path, flags, message):
    before = sorted(tmp_path.iterdir())
    code, _ = train(*flags)
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(train, capsys):
    code, _ = train("--recipe", "finetune", "--optimizer", "sgd", "--lr", "1000", "--clip-norm", "0")
    assert code == 2
    assert "Lower --lr" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_on_one_process_is_in_no_checkpoint(start, monkeypatch):
    original, calls = loss.cross_entropy, []

    def cross_entropy(*arguments, **settings):
        logits, losses = original(*arguments, **settings)
        calls.append(losses)
        broken = os.environ.get("RANK") == "1" and len(calls) >= 3
        return logits, losses * float("inf") if broken else losses

    monkeypatch.setattr(loss, "cross_entropy", cross_entropy)
    flags = ("--recipe", "finetune", "--model", "squeezenet1_1", "--batch-size", "4", "--checkpoint-every", "1")
    run = start("run", *flags, processes=2)
    assert run.wait() == [2, 2], run.said
    assert run.said.count("error: the loss is inf in epoch 1. Lower --lr") == 1, run.said
    assert "Traceback" not in run.said
    # The second may be cut short by the process's end.
    written = sorted(saved_checkpoints.names(run.output / "checkpoints"))
    assert written
    assert written[-1].name in ("0000-00000001", "0000-00000002"), "the third step's loss is infinite"
    for path in written:
        sums = json.loads((path / "state.json").read_text())["sums"]
        assert np.isfinite(sums).all()
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())


def test_ctrl_c_in_a_terminal_ends_cleanly_and_says_how_to_resume(image_folder, tmp_path):
    output = tmp_path / "run"
    flags = f"--recipe finetune --data {image_folder} --output {output} --tracker none --model shufflenet_v2_x0_5"
    tiny = "--weights none --image-size 32 --epochs 5000 --workers 2"
    command = [sys.executable, "train.py", *flags.split(), *tiny.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
    shown, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors
    assert "Traceback" not in errors
    assert f"Go on with the same command and --resume --output {output}" in shown
    assert load_file(output / "model" / "model.safetensors")


@pytest.mark.slow
def test_a_run_that_crashes_with_workers_ends_at_once(image_folder, tmp_path):
    flags = f"--recipe finetune --data {image_folder} --output {tmp_path / 'run'} --tracker none --workers 2"
    tiny = "--model shufflenet_v2_x0_5 --weights none --image-size 32 --epochs 3"
    broken = "from finetune.reporting import run_folder; run_folder.append_record = None"
    crash = f"import sys, train; {broken}; train.main(sys.argv[1:])"
    command = [sys.executable, "-c", crash, *flags.split(), *tiny.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "TypeError" in done.stderr


def test_class_names_with_mathematical_signs_are_drawn_as_they_are(train, tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write_images(
            tmp_path / "data" / split, 2, ("a$x^y$", "b$_{$", "a class with a name of more than forty signs"), seed
        )
    code, output = train("--epochs", "1", data=tmp_path / "data", pictures=True)
    assert code == 0
    assert all((output / "plots" / f"{name}.png").exists() for name in PICTURES)


@pytest.mark.slow
def test_nothing_that_draws_or_logs_is_imported_before_training(image_folder):
    code = (
        "import sys, train; train.main(sys.argv[1:]); "
        "print([name for name in ('matplotlib', 'wandb', 'torchmetrics') if name in sys.modules])"
    )
    flags = ["--data", str(image_folder), "--model", "shufflenet_v2_x0_5", "--weights", "none", "--plan"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_an_image_grid_that_fails_costs_no_result(train, monkeypatch, capsys):
    monkeypatch.setattr("finetune.reporting.image_grids.of_run", None)
    code, output = train("--epochs", "1", pictures=True)
    assert code == 0
    assert "could not all be drawn (TypeError" in capsys.readouterr().out
    assert (output / "summary.json").exists()


def test_a_chart_that_fails_costs_neither_a_result_nor_an_image_grid(train, monkeypatch, capsys):
    monkeypatch.setattr("finetune.reporting.charts.of_run", None)
    code, output = train("--epochs", "1", pictures=True)
    assert code == 0
    assert capsys.readouterr().out.count("could not all be drawn (TypeError") == 1
    assert (output / "summary.json").exists()
    assert (output / "plots" / "predictions.png").exists()


@pytest.mark.parametrize("best_by", ["macro_f1", "balanced_accuracy", "auroc"])
def test_the_best_epoch_is_the_one_by_the_metric_that_was_asked_for(train, best_by):
    code, output = train("--best-by", best_by, "--epochs", "4", "--lr", "1e-2", "--recipe", "finetune")
    assert code == 0
    values = [line[f"val_{best_by}"] for line in metrics(output)]
    assert len(values) == 4
    summary = json.loads((output / "summary.json").read_text())
    assert values[summary["best_epoch"] - 1] == max(values)
    assert ("val_auroc" in metrics(output)[0]) == (best_by == "auroc")
