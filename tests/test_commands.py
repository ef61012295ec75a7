"""`python -m finetune VERB`: what is printed, what is written, and what a mistake gets."""

import csv
import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import CLASSES, ROOT, reset_accelerate, write_images
from PIL import Image
from test_artifact import write

from finetune import __main__ as program
from finetune.entry import exit_code


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """Two runs of a model that tells the colours apart, mostly."""
    import train as script

    folder = tmp_path_factory.mktemp("trained")
    for name, lr in (("fast", "3e-3"), ("slow", "1e-4")):
        reset_accelerate()
        flags = (
            f"--recipe finetune --data {image_folder} --output {folder / name} --tracker none --precision no --lr {lr}"
        )
        tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 3 --eval-batch-size 3"
        assert script.main([*flags.split(), *tiny.split()]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """Run a verb in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        reset_accelerate()
        capsys.readouterr()
        code = exit_code(program.main, [str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_help_comes_in_under_a_second_and_names_every_verb():
    began = time.perf_counter()
    shown = subprocess.run([sys.executable, "-m", "finetune", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert time.perf_counter() - began < 1
    assert all(verb in shown.stdout for verb in program.VERBS)
    for verb in program.VERBS:
        assert (ROOT / "finetune" / "commands" / f"{verb}.py").exists(), verb
    code = "import sys; from finetune.commands import predict; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- predict ---------------------------------------------------------------------------------------------------------


def test_predict_takes_files_folders_patterns_and_stdin(trained, call, image_folder, monkeypatch):
    val = image_folder / "val"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{val}/blue/00.jpg\n\n{val}/red/01.jpg\n"))
    given = (val / "blue" / "00.jpg", val / "green", f"{val}/r*/0[12].jpg", "-")
    code, out, _ = call("predict", trained / "fast", *given, "--json", "--topk", "2")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"].removeprefix(f"{val}/") for row in rows] == [
        "blue/00.jpg", "green/00.jpg", "green/01.jpg", "green/02.jpg", "red/01.jpg", "red/02.jpg", "blue/00.jpg",
        "red/01.jpg",
    ]  # fmt: skip
    assert all(len(row["top"]) == 2 and row["top"][0]["probability"] >= row["top"][1]["probability"] for row in rows)
    assert rows[0] == rows[6], "the same image, the same answer"


def test_the_three_forms_say_the_same(trained, call, image_folder):
    folder = image_folder / "val" / "red"
    texts = {form: call("predict", trained / "fast", folder, *form)[1] for form in ((), ("--json",), ("--csv",))}
    objects = [json.loads(line) for line in texts["--json",].splitlines()]
    table = list(csv.DictReader(io.StringIO(texts["--csv",])))
    assert len(objects) == len(table) == len(texts[()].splitlines()) == 3
    for row, cells, line in zip(objects, table, texts[()].splitlines(), strict=True):
        assert cells["class_1"] == row["class"]
        assert float(cells["probability_1"]) == row["probability"]
        assert f"{row['path']}  {row['class']} {row['probability']:.1%}" in line
        assert set(cells) >= {"class_3", "probability_3"}


def test_a_bad_image_has_its_error_in_its_row_and_the_rest_are_classified(trained, call, image_folder, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    good = image_folder / "val" / "red" / "00.jpg"
    for workers in ("0", "2"):
        code, out, err = call("predict", trained / "fast", tmp_path / "a.jpg", good, tmp_path / "b.jpg", "--json",
                              "--workers", workers)  # fmt: skip
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 2
        assert [("error" in row, "class" in row) for row in rows] == [(True, False), (False, True), (True, False)]
        assert "cannot identify" in rows[0]["error"]
        assert "No such file" in rows[2]["error"]
        assert "2 of 3 images could not be read" in err
    code, out, _ = call("predict", trained / "fast", tmp_path / "a.jpg", good, "--csv")
    assert [bool(row["error"]) for row in csv.DictReader(io.StringIO(out))] == [True, False]


def test_an_image_gets_the_same_answer_as_in_evaluation_to_the_bit(trained, call, image_folder, tmp_path):
    for flags in ((), ("--tta",), ("--batch-size", "4")):
        code, out, _ = call("evaluate", trained / "slow", "--json", *flags)
        assert code == 0
        errors = json.loads(out)["errors"]
        assert errors, "the slow run makes mistakes"
        for error in errors:
            code, out, _ = call("predict", trained / "slow", error["image"], "--json", *flags)
            assert (json.loads(out)["class"], json.loads(out)["probability"]) == (
                error["predicted"],
                error["probability"],
            )


def test_a_reader_that_has_read_enough_is_no_error(trained, image_folder):
    command = f"{sys.executable} -m finetune predict {trained / 'fast'} {image_folder} --batch-size 1 | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_predict_draws_a_grid_once(trained, call, image_folder, tmp_path):
    grid = tmp_path / "grid.png"
    code, _, _ = call("predict", trained / "fast", image_folder / "val", "--grid", grid)
    assert code == 0
    assert np.asarray(Image.open(grid).convert("L")).std() > 5
    code, out, err = call("predict", trained / "fast", image_folder / "val", "--grid", grid)
    assert (code, out) == (2, "")
    assert "exists already" in err


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_says_what_training_said(trained, call):
    code, out, _ = call("evaluate", trained / "fast", "--json", "--batch-size", "3")
    assert code == 0
    said = json.loads(out)
    summary = json.loads((trained / "fast" / "summary.json").read_text())
    assert said["accuracy"] == summary["best_val_accuracy"]
    assert said["loss"] == pytest.approx(summary["best_val_loss"], rel=1e-6)
    assert sum(map(sum, said["confusion"])) == said["images"] == 9
    assert [row["name"] for row in said["classes"]] == list(CLASSES)
    assert len(said["errors"]) == round(9 * (1 - said["accuracy"]))
    low, high = said["accuracy_interval"]
    assert low < said["accuracy"] <= high
    code, out, _ = call("evaluate", trained / "fast", "--split", "all")
    assert code == 0
    assert "30 images of" in out
    assert all(name in out for name in (*CLASSES, "recall", "calibration error"))


def test_classes_are_matched_by_name(trained, call, image_folder, tmp_path):
    """A folder with other classes before the model's, or some of them only."""
    for name in ("blue", "red"):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / name).symlink_to(image_folder / "val" / name)
    code, _, err = call("evaluate", trained / "fast", "--data", tmp_path / "some")
    assert code == 2
    assert "no image is green" in err
    code, out, _ = call("evaluate", trained / "fast", "--data", tmp_path / "some", "--some-classes", "--json")
    assert code == 0
    some = json.loads(out)
    assert (some["images"], some["split"]) == (6, "all")
    whole = json.loads(call("evaluate", trained / "fast", "--json")[1])
    assert some["confusion"][2] == whole["confusion"][2], "red is row 2, as in the model, not row 1, as in the folder"
    (tmp_path / "some" / "violet").symlink_to(image_folder / "val" / "green")
    code, _, err = call("evaluate", trained / "fast", "--data", tmp_path / "some", "--some-classes")
    assert code == 2
    assert "the model does not know violet" in err


def test_evaluate_writes_its_files_into_a_new_folder(trained, call, tmp_path):
    code, _, _ = call("evaluate", trained / "slow", "--output", tmp_path / "out")
    assert code == 0
    names = {"evaluation.json", "errors.csv", "confusion.png", "per_class.png", "calibration.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    errors = list(csv.DictReader((tmp_path / "out" / "errors.csv").open()))
    assert len(errors) == len(json.loads((tmp_path / "out" / "evaluation.json").read_text())["errors"])
    code, _, err = call("evaluate", trained / "slow", "--output", tmp_path / "out")
    assert code == 2
    assert "exists already" in err


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(trained, call):
    one = json.loads(call("evaluate", trained / "slow", "--json", "--batch-size", "4")[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu_2proc.yaml"]
    command = [*launcher, "-m", "finetune", "evaluate", str(trained / "slow"), "--json", "--batch-size", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == one


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_compare_shows_what_differs_best_first(trained, call, tmp_path):
    code, out, _ = call("compare", trained / "slow", trained / "fast", "--csv", "--picture", tmp_path / "curves.png")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["run", "lr", "epochs run", "best epoch", "val accuracy", "val loss", "images/s", "seconds"]
    assert sorted(row["lr"] for row in rows) == ["0.0001", "0.003"]
    assert float(rows[0]["val accuracy"]) >= float(rows[1]["val accuracy"])
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5
    code, out, _ = call("compare", trained / "slow", trained / "fast", "--markdown", "--sort", "given")
    assert out.splitlines()[1].startswith("| --- |")
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["slow", "fast"]
    code, out, _ = call("compare", trained / "slow", trained / "fast")
    assert code == 0
    assert all(word in out for word in ("slow", "fast", "0.003", "val accuracy"))


@pytest.mark.slow
def test_the_script_trains_and_compares_recipes(tmp_path, image_folder):
    flags = f"--data {image_folder} --model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 1 --tracker none"
    command = f"PLACE={tmp_path}/runs launch/compare_recipes.sh finetune feature_extractor -- {flags}"
    path = f"{sys.prefix}/bin"
    done = subprocess.run(
        f"PATH={path}:$PATH {command}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout.splitlines()[-2] or "finetune" in done.stdout.splitlines()[-3]
    assert (tmp_path / "runs" / "curves.png").exists()


# ---- plot ------------------------------------------------------------------------------------------------------------


def test_plot_draws_a_runs_pictures_again(trained, call, tmp_path):
    shutil.copytree(trained / "fast", tmp_path / "run")
    names = {path.name for path in (trained / "fast" / "plots").iterdir()}
    charts = {"curves.png", "confusion.png", "per_class.png", "calibration.png"}
    assert names == charts | {"augmentations.png", "predictions.png", "top_losses.png"}
    for leave_scores in (True, False):  # without them the images are scored again
        shutil.rmtree(tmp_path / "run" / "plots")
        if not leave_scores:
            (tmp_path / "run" / "validation.safetensors").unlink()
        assert call("plot", tmp_path / "run")[0] == 0
        for name in names:
            assert (tmp_path / "run" / "plots" / name).read_bytes() == (trained / "fast" / "plots" / name).read_bytes()
    shutil.copy(trained / "fast" / "validation.safetensors", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "plots")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"data": "gone"}))
    code, out, _ = call("plot", tmp_path / "run")
    assert code == 0
    assert "The charts alone" in out
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == charts


# ---- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("state-dict", ()),
        ("state-dict", ("--half",)),
        pytest.param("torch-export", (), marks=pytest.mark.slow),
        pytest.param("onnx", ("--half",), marks=pytest.mark.slow),
    ],
)
def test_an_export_is_checked_and_says_how_far_it_is(trained, call, tmp_path, kind, flags):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model.bin"
    code, out, err = call("export", trained / "fast", "--format", kind, "--output", path, *flags)
    assert code == 0, err
    assert {file.name for file in tmp_path.iterdir()} == {"model.bin", "model.bin.json"}
    assert float(out.split("in a ")[1].split(": ")[1].split(",")[0]) < (1e-2 if flags else 1e-4)
    assert "8 validation images" in out
    about = json.loads((tmp_path / "model.bin.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert about["preprocess"]["crop"] == 32
    assert about["precision"] == ("float16" if flags else "float32")
    code, _, err = call("export", trained / "fast", "--format", kind, "--output", path)
    assert code == 2
    assert "exists already" in err


def test_onnx_takes_any_batch_and_holds_its_classes(call, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    write(tmp_path / "model", model="squeezenet1_0")
    code, out, err = call("export", tmp_path, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert code == 0, err
    assert "opset 18" in out
    assert "drawn images" in out, "this model has no run beside it, so no images of its own"
    held = onnx.load(tmp_path / "m.onnx")
    assert [entry.version for entry in held.opset_import if not entry.domain] == [18]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 3, 7):
        assert session.run(None, {"images": np.zeros((count, 3, 32, 32), np.float32)})[0].shape == (count, 3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b", "c"]


def test_an_export_that_is_too_far_off_is_refused_and_leaves_nothing(trained, call, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.export.LIMIT", -1.0)
    code, out, err = call("export", trained / "fast", "--format", "state-dict", "--output", tmp_path / "m.pth")
    assert (code, out) == (2, "")
    assert "differs from the model by" in err
    assert list(tmp_path.iterdir()) == []
    code, _, _ = call("export", trained / "fast", "--format", "state-dict")
    assert code == 2
    assert not (trained / "fast" / "export").exists()


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_mistake_gets_one_message_exit_code_2_and_writes_nothing(trained, call, tmp_path, image_folder):
    image = image_folder / "val" / "red" / "00.jpg"
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "dogs", 2, ("cat", "dog"))
    run = trained / "fast"
    cases = [
        (("predicte", run), "Did you mean predict"),
        (("predict", tmp_path / "unfinished", image), "has not finished an epoch"),
        (("predict", tmp_path / "nowhere", image), "does not exist"),
        (("predict", image_folder, image), "is no run"),
        (("predict", run, tmp_path / "empty"), "holds no image"),
        (("predict", run, f"{tmp_path}/*.gif"), "nothing matches"),
        (("predict", run, image, "--topk", "0"), "--topk"),
        (("predict", run, image, "--json", "--csv"), "choose one"),
        (("predict", run, image, "--precision", "fp16"), "needs a GPU"),
        (("predict", run, image, "--grid", tmp_path / "a" / "b.png"), "no folder"),
        (("evaluate", tmp_path / "empty"), "is no run"),
        (("evaluate", run, "--data", tmp_path / "dogs"), "the classes do not match: the model does not know cat, dog"),
        (("evaluate", run, "--split", "test"), "--split test"),
        (("evaluate", run / "model", "--data", tmp_path / "nowhere"), "does not exist"),
        (("plot", tmp_path / "unfinished"), "has not finished an epoch"),
        (("plot", tmp_path / "empty"), "is no run"),
        (("export", tmp_path / "empty", "--format", "onnx"), "is no run"),
        (("export", run, "--format", "state-dict", "--output", tmp_path / "a" / "b.pth"), "no folder"),
        (("export", run, "--format", "state-dict", "--images", tmp_path / "empty"), "holds no image"),
        (("compare", run), "two runs or more"),
        (("compare", run, tmp_path / "unfinished"), "has not finished an epoch"),
        (("compare", run, tmp_path / "empty"), "is no run"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, out, err = call(*arguments)
        assert code == 2, arguments
        assert message in err, arguments
        assert out == "", arguments
        assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_without_its_run_needs_to_be_told_its_images(trained, call, image_folder, tmp_path):
    shutil.copytree(trained / "fast" / "model", tmp_path / "bees")
    code, _, err = call("evaluate", tmp_path / "bees")
    assert code == 2
    assert "say on which images, with --data" in err
    code, out, _ = call("evaluate", tmp_path / "bees", "--data", image_folder, "--json", "--precision", "no")
    assert code == 0
    assert json.loads(out)["split"] == "val"
