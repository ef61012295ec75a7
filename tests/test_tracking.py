"""Trackers: W&B decides quickly, its offline run holds what was logged, and nothing it does ends a run."""

import json
import socket
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
from conftest import ROOT, metrics

from finetune import hardware, recipes, tracker
from finetune.errors import UserError
from finetune.recipe import Run


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A user whom W&B does not know."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


def test_without_a_key_it_is_offline_at_once(no_key):
    began = time.perf_counter()
    assert tracker.wandb_mode() == ("offline", "no API key; `wandb login` makes one known")
    assert time.perf_counter() - began < 3


def test_with_a_key_and_no_network_it_is_offline_in_under_three_seconds(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # nothing listens there
    wandb.teardown()
    began = time.perf_counter()
    assert tracker.wandb_mode() == ("offline", "localhost cannot be reached")
    assert time.perf_counter() - began < 3


def test_a_name_server_that_never_answers_does_not_hold_up_the_run(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    began = time.perf_counter()
    assert not tracker._reachable("example.invalid", 443)
    assert time.perf_counter() - began < 3


def test_wandb_mode_of_the_environment_is_kept(monkeypatch):
    for value, expected in (("offline", "offline"), ("disabled", "disabled")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert tracker.wandb_mode()[0] == expected


def test_the_offline_run_holds_config_history_and_summary(train):
    code, output = train("--tracker", "wandb", "--seed", "5")
    assert code == 0
    run = next((output / "wandb").glob("offline-run-*/*.wandb"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    for line in metrics(output):
        assert f"{line['val_loss']:.6f}"[:7] in shown.stdout or str(line["val_accuracy"]) in shown.stdout


def test_the_offline_run_holds_all_that_there_is_to_see(train):
    flags = (
        "--recipe",
        "gradual_unfreeze",
        "--unfreeze-every",
        "1",
        "--log-every",
        "2",
        "--log-model",
        "--batch-size",
        "4",
    )
    code, output = train(*flags, "--tracker", "wandb", pictures=True)
    assert code == 0
    found = wandb_file.read_ended(output)
    assert found.ended
    assert (found.run.display_name, found.run.run_group, found.run.project) == ("run0", "gradual_unfreeze", "finetune")
    assert list(found.run.tags) == ["gradual_unfreeze", "shufflenet_v2_x0_5", "images0"]
    config = json.loads((output / "config.json").read_text())
    assert {key: found.config[key] for key in config} == config

    updates = [row for row in found.rows if "update/loss" in row]
    assert [row["_step"] for row in updates] == [2, 4, 6, 8, 10], "two epochs of five updates"
    assert all(row["update/loss"] > 0 and row["update/gradient_norm"] > 0 for row in updates)
    assert sum("update/images_per_second" in row for row in updates) == 3, "none across an epoch's end"
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
    assert {"mistakes", "confusion_table"} <= set(media), "W&B's own chart is a table with a way to draw it"
    files = next((output / "wandb").glob("offline-run-*/files"))
    for value in media.values():
        assert (files / value["path"]).is_file(), value
    (model,) = [artifact for artifact in found.artifacts if artifact.type == "model"]
    assert {entry.path for entry in model.manifest.contents} >= {"model.json", "model.safetensors", "README.md"}
    held = [entry.local_path for artifact in found.artifacts for entry in artifact.manifest.contents]
    assert all(path.startswith(str(output)) for path in held if path), "all of it waits in the run's folder"
    assert json.loads(model.metadata)["best_val_accuracy"] == summary["best_val_accuracy"]


def test_a_hard_kill_loses_at_most_a_second_of_history(image_folder, tmp_path):
    flags = f"--recipe finetune --data {image_folder} --output {tmp_path / 'run'} --tracker wandb --log-every 1"
    tiny = "--model shufflenet_v2_x0_5 --weights none --image-size 32 --epochs 5000 --precision no"
    command = [sys.executable, "train.py", *flags.split(), *tiny.split()]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    lines = tmp_path / "run" / "metrics.jsonl"
    while time.monotonic() < deadline and not (lines.exists() and len(lines.read_text().splitlines()) >= 12):
        time.sleep(0.1)
    running.kill()
    killed = time.time()
    running.wait()
    time.sleep(0.5)  # W&B's own process sees that it is alone
    found = wandb_file.read(tmp_path / "run")
    assert found.rows
    # A second, the time of an update, and what a loaded machine adds; W&B by itself would lose up to fifteen.
    assert killed - max(row["_timestamp"] for row in found.rows) < 2.5


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
    wandb.teardown()


def test_the_sweep_s_values_are_flags_and_its_metric_is_logged(train):
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
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        hardware.check_tracker("tensorboard")
    hardware.check_tracker("none")


def test_every_tracker_of_accelerates_can_be_asked_for():
    known = {str(kind) for kind in LoggerType if kind != LoggerType.ALL}
    assert known <= set(typing.get_args(typing.get_type_hints(Run)["tracker"]))


def test_a_tracker_of_accelerates_own_gets_the_figures(train, monkeypatch):
    said = []

    class Recorded(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "mlflow", True, None

        def __init__(self, project, logging_dir, run_name):
            super().__init__()
            said.append(("start", project, run_name))

        def store_init_configuration(self, values):
            said.append(("config", values["lr"]))

        def log(self, values, step, **_):
            said.append(("log", step, "val_accuracy" in values, "lr/head" in values))

        def finish(self):
            said.append(("finish",))

    monkeypatch.setattr(hardware, "find_spec", lambda name: True)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, LoggerType.MLFLOW])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Recorded)
    code, output = train("--tracker", "mlflow", "--project", "beetles", "--log-every", "0", "--lr", "1e-2")
    assert code == 0
    steps = [line["step"] for line in metrics(output)]
    assert said == [
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
    assert {"val_accuracy", "lr/head", "update/loss", "update/gradient_norm"} <= tags["scalars"]
    assert "plots/confusion" in tags["images"]
