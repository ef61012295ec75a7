"""The records of a run: what config.json, metrics.jsonl and summary.json hold."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import recipes
from finetune.config.settings import Run
from finetune.reporting import records, run_folder
from finetune.training.evaluation import Scores


def test_records_hold_every_setting_every_epoch_and_the_best_one(train):
    flags = ("--recipe", "linear_then_finetune", "--head-epochs", "1", "--epochs", "2", "--batch-size", "8")
    code, output = train(*flags)
    assert code == 0
    found = run_folder.read(output)

    assert (found.config["recipe"], found.config["head_epochs"], found.config["batch_size"]) == (
        "linear_then_finetune", 1, 8,
    )  # fmt: skip
    assert found.config["classes"] == ["blue", "green", "red"]
    assert found.config["versions"].keys() >= {"python", "torch", "torchvision", "accelerate"}
    actions = {"plan", "json", "preview", "lr_find", "resume"}
    assert actions <= vars(Run()).keys()
    assert not actions & found.config.keys(), "they are no settings of the run"
    json.dumps(found.config, allow_nan=False)

    assert [(record["epoch"], record["step"]) for record in found.history] == [(1, 3), (2, 6)]
    first, second = (record["lr"] for record in found.history)
    assert first["head"] > 0
    assert first["stem"] == 0 < second["stem"], "the stem is frozen in the first epoch"

    best = max(found.history, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
    assert found.ended
    assert found.summary["best_epoch"] == best["epoch"]
    assert found.summary["best_val_accuracy"] == pytest.approx(best["val_accuracy"])
    assert (found.summary["epochs_run"], found.summary["stopped_early"]) == (2, False)
    assert (found.summary["train_images"], found.summary["val_images"]) == (21, 9)


def test_paths_that_exist_are_absolute_in_config_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "sets"):
        Path(name).mkdir()
    Path("fixes.csv").touch()
    words = "--recipe finetune --data photos --data-root sets --exclude fixes.csv --output gone"
    found = records.settings(recipes.from_command_line(words.split()))
    assert found["data"] == str(tmp_path / "photos")
    assert found["data_root"] == str(tmp_path / "sets")
    assert found["exclude"] == str(tmp_path / "fixes.csv")
    assert found["output"] == "gone"


def test_a_score_is_also_told_without_copies_of_training_images(train, tmp_path, image_folder, capsys):
    data = tmp_path / "leaky"
    shutil.copytree(image_folder, data)
    for k in range(2):
        shutil.copy(data / "train" / "red" / f"{k:02}.jpg", data / "val" / "red" / f"copy{k}.jpg")
    code, output = train("--recipe", "finetune", "--epochs", "1", data=data)
    assert code == 0
    summary = run_folder.read(output).summary
    scores, _ = Scores.load(output / run_folder.SCORES)
    kept = [k for k in range(11) if k not in (9, 10)]  # copies sort behind the numbers; red is the last class
    correct = (scores.predictions[:, 0] == scores.labels)[kept].double().mean().item()
    assert (summary["val_copies"], summary["val_accuracy_without_copies"]) == (2, correct)
    told = " ".join(capsys.readouterr().out.split())
    assert "copies of training images: 2 of 11 in val/" in told
    assert f"Without the 2 validation images that are copies of training images: {correct:.4f}." in told
