"""Trackers: what W&B's offline run and TensorBoard hold, and that no failure of a tracker ends a run."""

import json
import subprocess
import sys
import time
import typing

import pytest
import wandb
import wandb_file
import yaml
from accelerate import tracking
from accelerate.utils import LoggerType
from support import ROOT, metrics

from finetune import recipes
from finetune.config.settings import Run
from finetune.errors import UserError
from finetune.runtime import devices


def test_the_offline_run_holds_config_history_and_summary(train):
    code, output = train("--tracker", "wandb", "--seed", "5")
    assert code == 0
    run = next((output / "wandb").glob("offline-run-*/*.wandb"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    logged = json.loads(shown.stdout)
    config, summary = (json.loads((output / f"{name}.json").read_text()) for name in ("config", "summary"))
    assert config["seed"] == 5
    assert {key: logged["config"][key] for key in config} == config
    assert {key: logged["summary"][key] for key in summary} == summary
    records, rows = metrics(output), [row for row in wandb_file.read_ended(output).rows if "val_loss" in row]
    assert len(records) == 2
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
        assert [row[key] for row in rows] == [record[key] for record in records]
        assert logged["summary"][key] == records[-1][key]


def test_the_offline_run_holds_steps_epochs_pictures_and_the_model(train):
    flags = (
        "--recipe",
        "gradual_unfreeze",
        "--unfreeze-every",
        "1",
        "--batch-size",
        "4",
        "--log-every",
        "2",
        "--log-model",
    )
    code, output = train(*flags, "--tracker", "wandb", pictures=True)
    assert code == 0
    found = wandb_file.read_ended(output)
    assert found.ended
    assert (found.run.display_name, found.run.run_group, found.run.project) == ("run0", "gradual_unfreeze", "finetune")
    assert list(found.run.tags) == ["gradual_unfreeze", "shufflenet_v2_x0_5", "images0"]
    config = json.loads((output / "config.json").read_text())
    assert {key: found.config[key] for key in config} == config

    steps = [row for row in found.rows if "step/loss" in row]
    assert [row["_step"] for row in steps] == [2, 4, 6, 8, 10], "two epochs of five steps"
    assert all(row["step/loss"] > 0 and row["step/gradient_norm"] > 0 for row in steps)
    assert sum("step/images_per_second" in row for row in steps) == 3, "none across an epoch's end"
    epochs = [row for row in found.rows if "val_accuracy" in row]
    for row, line in zip(epochs, metrics(output), strict=True):
        assert (row["_step"], row["val_loss"], row["lr/head"]) == (line["step"], line["val_loss"], line["lr"]["head"])
        assert {key.removeprefix("lr/") for key in row if key.startswith("lr/")} == set(line["lr"])
    assert len({row["_step"] for row in found.rows}) == len(found.rows), "no step twice"

    summary = json.loads((output / "summary.json").read_text())
    assert {key: found.summary[key] for key in summary} == summary
    media = {key: value for row in found.rows for key, value in row.items() if isinstance(value, dict)}
    pictures = {"augmentations", "calibration", "confusion", "curves", "per_class", "predictions", "top_losses"}
    assert {f"plots/{name}" for name in pictures} <= set(media)
    assert {"errors", "confusion_table"} <= set(media), "W&B's own chart is a table with a way to draw it"
    files = next((output / "wandb").glob("offline-run-*/files"))
    for value in media.values():
        assert (files / value["path"]).is_file(), value
    (model,) = [artifact for artifact in found.artifacts if artifact.type == "model"]
    assert {entry.path for entry in model.manifest.contents} >= {"model.json", "model.safetensors", "README.md"}
    held = [entry.local_path for artifact in found.artifacts for entry in artifact.manifest.contents]
    assert all(path.startswith(str(output)) for path in held if path), "all of it lies in the run's folder"
    assert json.loads(model.metadata)["best_val_accuracy"] == summary["best_val_accuracy"]


@pytest.mark.slow
def test_a_hard_kill_loses_seconds_of_history_and_not_wandbs_fifteen(image_folder, tmp_path):
    flags = f"--recipe finetune --data {image_folder} --output {tmp_path / 'run'} --tracker wandb --log-every 0"
    tiny = "--model shufflenet_v2_x0_5 --weights none --image-size 512 --epochs 5000 --precision no"
    command = [sys.executable, "train.py", *flags.split(), *tiny.split()]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any(wandb_file.read_file(path).rows for path in tmp_path.glob("run/wandb/offline-run-*/*.wandb")):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(12)  # W&B by itself would write its next rows after fifteen seconds
    finally:
        running.kill()
        killed = time.time()
        running.wait()
    # A second, the time of an epoch, and what a loaded machine adds.
    assert killed - max(row["_timestamp"] for row in wandb_file.read(tmp_path / "run").rows) < 6


def test_a_network_that_dies_in_mid_run_costs_the_run_nothing(train, monkeypatch):
    """Every call to W&B but the first fails, the finishing one too."""
    from accelerate.tracking import WandBTracker

    calls = []

    def dead(self, *_, **__):
        calls.append(1)
        raise wandb.errors.CommError("the network is gone")

    monkeypatch.setattr(WandBTracker, "log", dead)
    code, output = train("--tracker", "wandb", "--log-every", "1", "--log-model")
    assert (code, len(calls)) == (0, 1)
    assert json.loads((output / "summary.json").read_text())["epochs_run"] == 2


def test_the_sweeps_values_are_flags_and_its_metric_is_logged(train):
    sweep = yaml.safe_load((ROOT / "launch" / "sweep.yaml").read_text())
    assert sweep["program"] == "train.py"
    seen = 0
    for name, given in sweep["parameters"].items():
        for value in given.get("values") or (given["min"], given["max"]):
            recipes.from_command_line([f"--{name}={value}"])  # exits where there is no such flag
            seen += 1
    assert seen >= 10
    assert sweep["metric"]["name"] in metrics(train("--epochs", "1")[1])[0]
    assert sweep["command"][-1] == "${args}"


def test_a_tracker_that_breaks_costs_the_run_nothing(train, monkeypatch, capsys):
    def broken(self, *_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.log", broken)
    code, output = train("--tracker", "wandb")
    assert code == 0
    assert len(metrics(output)) == 2
    assert "The tracker failed and is off (ConnectionError: gone)" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        devices.check_tracker("tensorboard")
    devices.check_tracker("none")


def test_every_tracker_of_accelerates_is_a_choice_of_the_flag():
    known = {str(kind) for kind in LoggerType if kind != LoggerType.ALL}
    assert known <= set(typing.get_args(typing.get_type_hints(Run)["tracker"]))


def test_a_tracker_of_accelerates_own_gets_the_metrics(train, monkeypatch):
    calls = []

    class Recorded(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "mlflow", True, None

        def __init__(self, project, logging_dir, run_name):
            super().__init__()
            calls.append(("start", project, run_name))

        def store_init_configuration(self, values):
            calls.append(("config", values["lr"]))

        def log(self, values, step, **_):
            calls.append(("log", step, "val_accuracy" in values, "lr/head" in values))

        def finish(self):
            calls.append(("finish",))

    monkeypatch.setattr(devices, "find_spec", lambda name: True)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, LoggerType.MLFLOW])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Recorded)
    code, output = train("--tracker", "mlflow", "--project", "beetles", "--log-every", "0", "--lr", "1e-2")
    assert code == 0
    steps = [line["step"] for line in metrics(output)]
    assert calls == [
        ("start", "beetles", output.name),
        ("config", 0.01),
        *(("log", step, True, True) for step in steps),
        ("finish",),
    ]


def test_tensorboard_gets_the_epochs(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, output = train("--tracker", "tensorboard", "--log-every", "1", pictures=True)
    assert code == 0
    tags = {"scalars": set(), "images": set()}
    for path in output.rglob("events.out.tfevents.*"):
        found = EventAccumulator(str(path)).Reload().Tags()
        tags = {kind: names | set(found[kind]) for kind, names in tags.items()}
    assert {"val_accuracy", "lr/head", "step/loss", "step/gradient_norm"} <= tags["scalars"]
    assert "plots/confusion" in tags["images"]
