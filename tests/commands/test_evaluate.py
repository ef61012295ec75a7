"""`python -m finetune evaluate`: score a run on its own images or on others."""

import csv
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import CLASSES, ROOT

from finetune.models.architectures import FITS


def test_evaluate_prints_the_scores_of_training(trained, call):
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


@pytest.mark.parametrize(
    ("fit", "sees"),
    [
        pytest.param("crop", False, marks=pytest.mark.slow),
        pytest.param("squash", True, marks=pytest.mark.slow),
        ("pad", True),
    ],
)
def test_every_command_makes_images_square_as_in_training(train, call, capsys, tmp_path, fit, sees):
    random = np.random.default_rng(0)
    for split, label, k in product(("train", "val"), range(2), range(8)):  # only the ends of wide images tell a class
        pixels = random.integers(0, 60, (30, 90, 3))
        pixels[:, [*range(30), *range(60, 90)], label * 2] += 190
        folder = tmp_path / "data" / split / ("red", "blue")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    solved = ("--recipe", "feature_extractor", "--solver", "auto", "--weights", "starter", "--image-size", "64")
    code, output = train(*solved, "--fit", fit, "--no-hflip", data=tmp_path / "data")
    assert code == 0
    assert (f"64 × 64 pixels (--fit {fit})" in " ".join(capsys.readouterr().out.split())) == sees, "in the plan's title"
    accuracy = json.loads((output / "summary.json").read_text())["best_val_accuracy"]
    assert accuracy == 1 if sees else accuracy < 0.9
    shutil.copytree(output / "model", tmp_path / "alone")  # without the run's settings
    for run in (output, tmp_path / "alone"):
        code, out, err = call("evaluate", run, "--data", tmp_path / "data", "--json", "--precision", "no")
        assert code == 0, err
        assert json.loads(out)["accuracy"] == accuracy
        code, out, _ = call("predict", run, tmp_path / "data" / "val", "--json", "--precision", "no")
        found = [json.loads(line) for line in out.splitlines()]
        correct = [one["class"] == Path(one["path"]).parent.name for one in found]
        assert np.mean(correct) == accuracy
    code, _, err = call("export", output, "--format", "state-dict")
    assert code == 0, err
    assert json.loads((output / "export" / "model.pth.json").read_text())["preprocess"]["fit"] == fit
    assert FITS[fit] in " ".join((output / "model" / "README.md").read_text().split())


def test_a_test_split_without_one_of_the_classes_is_scored_and_the_plan_warns(
    train, call, capsys, image_folder, tmp_path
):
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.copytree(image_folder / "val", tmp_path / "data" / "test")
    shutil.rmtree(tmp_path / "data" / "test" / "green")
    code, output = train(data=tmp_path / "data")
    assert code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no image of the test split is green: the test accuracy says nothing about 1 of 3 classes" in shown
    assert "| green | 7 | 3 | 0 |" in (output / "model" / "README.md").read_text()
    code, out, _ = call("evaluate", output, "--split", "test", "--json")
    assert code == 0
    assert [(row["name"], row["images"]) for row in json.loads(out)["classes"]] == [
        ("blue", 3),
        ("green", 0),
        ("red", 3),
    ]
    assert "NaN" not in out


def test_the_accuracy_of_sure_predictions_and_their_share(trained, call):
    whole = json.loads(call("evaluate", trained / "slow", "--json")[1])
    assert "abstain" not in whole
    limit = sorted(row["probability"] for row in whole["errors"])[-1]  # of the surest error
    found = json.loads(call("evaluate", trained / "slow", "--json", "--abstain", repr(limit + 1e-4))[1])["abstain"]
    assert found["accuracy"] in (None, 1.0)
    assert found["coverage"] <= whole["accuracy"]
    everything = json.loads(call("evaluate", trained / "slow", "--json", "--abstain", "0.1")[1])["abstain"]
    assert everything == {"below": 0.1, "coverage": 1.0, "accuracy": pytest.approx(whole["accuracy"])}
    code, out, _ = call("evaluate", trained / "slow", "--abstain", "1")
    assert code == 0
    assert "probability 1 or more: 0.0% of the images, none on them" in " ".join(out.split())


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


def test_a_model_without_its_run_needs_data(trained, call, image_folder, tmp_path):
    shutil.copytree(trained / "fast" / "model", tmp_path / "bees")
    code, _, err = call("evaluate", tmp_path / "bees")
    assert code == 2
    assert "name the images with --data" in err
    code, out, _ = call("evaluate", tmp_path / "bees", "--data", image_folder, "--json", "--precision", "no")
    assert code == 0
    assert json.loads(out)["split"] == "val"
