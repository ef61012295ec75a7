"""The head of frozen features is solved: from the command line to the model folder."""

import json
import os
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from support import FAMILIES, metrics, no_pictures
from torch import nn

import finetune
from finetune.config.settings import Net, Rate
from finetune.features import feed, head
from finetune.features.graph_split import Splitter
from finetune.models import architectures, surgery
from finetune.models.network import Network
from finetune.reporting import records as run_records

SOLVED = ("--solver", "auto", "--weights", "starter", "--precision", "no")
FLOATS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    no_pictures(monkeypatch)


def weights(output):
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "maxvit_t" else name for name in FAMILIES]
)
def test_every_architecture_is_split_before_its_head(name):
    net = Net(model=name, weights="default")
    model, preprocess, stages = surgery.build(net, 3, empty=True)
    network = Network(model, preprocess, stages, [Rate(1.0)] * len(stages), architectures.find(name))
    split = head._split(Splitter(network))
    layer = network.head
    assert split.shape[0] == (layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features)
    assert all(parameter.requires_grad for parameter in model.parameters()), "it is left in its first phase"


@pytest.mark.parametrize("model", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_the_saved_model_scores_its_training_images_as_the_solver_did(train, image_folder, tmp_path, model):
    if model == "squeezenet1_1":  # its head is a convolution, before the average over positions
        torch.manual_seed(0)
        weights_file = tmp_path / "weights.pth"
        torch.save(surgery.build(Net(model=model, weights="none"), 1000)[0].state_dict(), weights_file)
    flags = (
        SOLVED
        if model == "shufflenet_v2_x0_5"
        else ("--solver", "auto", "--weights", str(weights_file), "--precision", "no")
    )
    code, output = train("--model", model, "--image-size", "64", "--augment", "none", *flags)
    assert code == 0
    best = json.loads((output / "summary.json").read_text())["best_epoch"]
    record = next(record for record in metrics(output) if record["epoch"] == best)
    opened, transform, classes = finetune.load(output)
    for split in ("train", "val"):
        paths = sorted((image_folder / split).rglob("*.jpg"))
        labels = torch.tensor([classes.index(path.parent.name) for path in paths])
        with torch.no_grad():
            loss = nn.functional.cross_entropy(opened(transform(paths)), labels).item()
        assert loss == pytest.approx(record[f"{split}_loss"], rel=1e-3), split
    assert record["views"] == 1


def test_a_solved_head_has_a_record_per_strength_and_is_chosen_by_held_out_training_images(train):
    code, output = train(*SOLVED)
    assert code == 0
    records, summary = metrics(output), json.loads((output / "summary.json").read_text())
    assert len(records) >= 3
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert all(one["l2"] > two["l2"] for one, two in pairwise(records))
    best = min(records, key=lambda record: record["fold_loss"])
    assert summary["best_epoch"] == best["epoch"]
    assert summary["l2"] == best["l2"]
    assert summary["best_val_accuracy"] == best["val_accuracy"]
    assert summary["epochs_run"] == 0
    assert not summary["stopped_early"]


def test_any_number_of_processes_solves_the_same_head(start):
    outputs = []
    for processes in (1, 2):
        run = start(f"p{processes}", *SOLVED, processes=processes)
        assert set(run.wait()) == {0}, run.said
        outputs.append(run.output)
    one, two = map(weights, outputs)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-5, atol=1e-7, msg=key)
    assert len(metrics(outputs[0])) == len(metrics(outputs[1]))


def test_another_fit_on_cached_features_computes_no_frozen_part(train, tmp_path):
    assert train(*SOLVED)[0] == 0
    known = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert train(*SOLVED, "--seed", "1", "--l2", "0.01")[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}.keys() == known.keys()


@pytest.mark.slow
def test_without_a_cache_the_same_head_is_solved(train):
    first, second = train(*SOLVED)[1], train(*SOLVED, "--cache-gb", "0")[1]
    for key, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[key], rtol=1e-5, atol=1e-7, msg=key)


# ---- as the start of training ----------------------------------------------------------------------------------------
def test_training_that_does_harm_ends_with_the_solved_head(train):
    code, output = train("--recipe", "finetune", *SOLVED, "--lr", "0.05", "--epochs", "2")
    assert code == 0
    records, summary = metrics(output), json.loads((output / "summary.json").read_text())
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert summary["best_epoch"] == 0
    assert summary["epochs_run"] == 2
    solved, pretrained = weights(output), weights(train(*SOLVED)[1])
    assert len(solved) > 100
    for key, value in solved.items():  # also BatchNorm's statistics
        torch.testing.assert_close(value, pretrained[key], rtol=1e-5, atol=1e-7, msg=key)


def test_training_goes_on_from_the_solved_head(train):
    frozen = ("--recipe", "finetune", *SOLVED, "--lr", "1e-9", "--augment", "none", "--label-smoothing", "0")
    code, output = train(*frozen, "--epochs", "1")
    assert code == 0
    first, second = metrics(output)
    assert [second[name] for name in FLOATS] == pytest.approx([first[name] for name in FLOATS], rel=1e-3)
    assert first["train_accuracy"] > 0.8


def test_a_moving_average_starts_at_the_solved_head(train):
    code, output = train("--recipe", "finetune", *SOLVED, "--ema", "0.9", "--lr", "1e-9", "--epochs", "1")
    assert code == 0
    assert metrics(output)[0]["val_accuracy"] > 0.5


@pytest.mark.slow
def test_a_run_that_is_resumed_does_not_solve_again(train, monkeypatch):
    flags = ("--recipe", "finetune", *SOLVED, "--schedule", "constant")
    assert train(*flags, "--epochs", "2")[0] == 0
    code, output = train(*flags, "--epochs", "1")
    assert code == 0
    monkeypatch.setattr(head, "solve", None)
    assert train(*flags, "--epochs", "2", "--resume", "--output", str(output))[0] == 0
    assert [record["epoch"] for record in metrics(output)] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "expected"), [("feature_extractor", 0), ("finetune", 75)])
def test_a_stop_while_heads_are_scored_cuts_no_path_short(train, monkeypatch, recipe, expected):
    flags, original = ("--recipe", recipe, *SOLVED, "--epochs", "1"), run_records.head_record
    whole = train(*flags)[1]

    def stopped(number, *arguments):
        if number <= 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(number, *arguments)

    monkeypatch.setattr(run_records, "head_record", stopped)
    code, output = train(*flags)
    assert code == expected
    if code:
        assert train(*flags, "--resume", "--output", str(output))[0] == 0
    assert metrics(output) == metrics(whole)
    assert len(metrics(whole)) >= 2


def test_a_head_that_is_left_out_stays_as_it_was_solved(train, capsys):
    solved = weights(train(*SOLVED)[1])
    capsys.readouterr()
    flags = ("--recipe", "finetune", *SOLVED, "--train-depths", "stem", "3", "--lr", "1e-2", "--epochs", "2")
    code, output = train(*flags)
    assert code == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in shown if line[:2] == ["head", "fc"]] == ["solved"]
    assert [set(record["lr"]) for record in metrics(output)] == [{"stem", "stage 3"}] * 3
    newest = max((output / "checkpoints").iterdir())
    last = load_file(newest / "model.safetensors") | load_file(newest / "frozen.safetensors")
    for key in ("fc.weight", "fc.bias"):
        torch.testing.assert_close(last[key], solved[key], rtol=1e-5, atol=1e-7)
    assert not torch.equal(last["conv1.0.weight"], solved["conv1.0.weight"])
    assert not torch.equal(last["stage4.0.branch1.2.weight"], solved["stage4.0.branch1.2.weight"])
    assert torch.equal(last["stage3.0.branch1.2.weight"], solved["stage3.0.branch1.2.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the head is solved", "after an epoch"])
def test_a_run_without_the_head_is_resumed_to_the_byte(train, monkeypatch, when):
    flags = ("--recipe", "finetune", *SOLVED, "--train-depths", "3", "--lr", "1e-2", "--schedule", "constant")
    whole = train(*flags, "--epochs", "2", "--cache-gb", "0")[1]
    if when == "after an epoch":
        code, output = train(*flags, "--epochs", "1", "--cache-gb", "0")
        assert code == 0
    else:
        original = feed.fixed_views

        def stopped(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(feed, "fixed_views", stopped)
            code, output = train(*flags, "--epochs", "2", "--cache-gb", "0")
            assert code == 75
    resumed = ("--epochs", "2", "--cache-gb", "0", "--resume", "--output", str(output))
    assert train(*flags, *resumed)[0] == 0
    assert metrics(output) == metrics(whole)
    newest, expected = (max((folder / "checkpoints").iterdir()) for folder in (output, whole))
    for name in ("frozen", "model", "best"):
        assert (newest / f"{name}.safetensors").read_bytes() == (expected / f"{name}.safetensors").read_bytes(), name


def test_a_new_head_that_is_neither_trained_nor_solved_is_a_mistake(train, capsys):
    code, output = train("--recipe", "finetune", *SOLVED, "--train-depths", "3", "--head", "mlp")
    assert (code, output.exists()) == (2, False)
    assert "neither trained nor solved (the head is not linear (--head mlp)). Add head to" in capsys.readouterr().err


# ---- when it is not solved -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--solver", "sgd"), "--solver sgd"),
        (("--weights", "none"), "random (--weights none)"),
        (("--head", "mlp"), "not linear (--head mlp)"),
        (("--pool-size", "2"), "--pool-size"),
        (("--label-smoothing", "0.1"), "the loss is another (--label-smoothing)"),
        (("--mixup", "0.2"), "images are mixed"),
        (("--views", "0"), "new in each epoch (--views 0)"),
    ],
)
def test_what_asks_for_gradient_steps_gets_them_and_the_plan_says_why(train, capsys, flags, reason):
    code, output = train(*SOLVED, "--epochs", "1", *flags)
    assert code == 0
    assert "l2" not in metrics(output)[0]
    assert reason in " ".join(capsys.readouterr().out.split())
    if flags != ("--solver", "sgd"):
        assert train(*SOLVED, *flags, "--solver", "lbfgs")[0] == 2
        assert "error: --solver lbfgs: " in capsys.readouterr().err


def test_the_plan_says_that_the_head_is_solved_and_on_what(train, capsys):
    assert train(*SOLVED, "--plan")[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "solved on 21 images and their mirror images, 1024 features each; L2 strength 1 to 1e-05" in shown
    assert "epochs ×" not in shown
    assert train(*SOLVED, "--recipe", "finetune", "--l2", "0.1", "--no-hflip", "--plan")[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "solved, then from the start" in shown
    assert "solved on 21 images, 1024 features each; L2 strength 0.1" in shown


@pytest.mark.parametrize(
    ("flags", "views", "words"),
    [
        (("--vflip",), 4, "21 images, also mirrored, upside down and both,"),
        (("--vflip", "--no-hflip"), 2, "21 images, also upside down,"),
        (("--vflip", "--augment", "none"), 1, "21 images, 1024"),
    ],
)
def test_a_flip_that_augmentation_makes_is_a_view_of_the_solved_head(train, capsys, flags, views, words):
    code, output = train(*SOLVED, *flags, "--l2", "0.1")  # with a given strength, all views are used
    assert code == 0
    assert f"solved on {words}" in " ".join(capsys.readouterr().out.split())
    assert metrics(output)[0]["views"] == views
