"""Trackers: W&B decides quickly, its offline run holds what was logged, and nothing it does ends a run."""

import socket
import subprocess
import sys
import time

import pytest
import wandb
from conftest import metrics

from finetune import hardware, tracking
from finetune.errors import UserError


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
    assert tracking.wandb_mode() == ("offline", "no API key; `wandb login` makes one known")
    assert time.perf_counter() - began < 3


def test_with_a_key_and_no_network_it_is_offline_in_under_three_seconds(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # nothing listens there
    wandb.teardown()
    began = time.perf_counter()
    assert tracking.wandb_mode() == ("offline", "localhost cannot be reached")
    assert time.perf_counter() - began < 3


def test_a_name_server_that_never_answers_does_not_hold_up_the_run(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    began = time.perf_counter()
    assert not tracking._reachable("example.invalid", 443)
    assert time.perf_counter() - began < 3


def test_wandb_mode_of_the_environment_is_kept(monkeypatch):
    for value, expected in (("offline", "offline"), ("disabled", "disabled")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert tracking.wandb_mode()[0] == expected


def test_the_offline_run_holds_config_history_and_summary(train):
    code, output = train("--tracker", "wandb", "--seed", "5")
    assert code == 0
    run = next((output / "wandb").glob("offline-run-*/*.wandb"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    for line in metrics(output):
        assert f"{line['val_loss']:.6f}"[:7] in shown.stdout or str(line["val_accuracy"]) in shown.stdout


def test_a_tracker_that_breaks_costs_the_run_nothing(train, monkeypatch, capsys):
    def broken(self, *_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr("accelerate.tracking.WandBTracker.log", broken)
    code, output = train("--tracker", "wandb")
    assert code == 0
    assert len(metrics(output)) == 2
    assert "The tracker failed and is off (ConnectionError: gone)" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise hardware.PackageNotFoundError(name)

    monkeypatch.setattr(hardware, "version", missing)
    with pytest.raises(UserError, match="pip install tensorboard"):
        hardware.check_tracker("tensorboard")
    hardware.check_tracker("none")


def test_tensorboard_gets_the_epochs(train):
    pytest.importorskip("tensorboard")
    code, output = train("--tracker", "tensorboard")
    assert code == 0
    assert [path for path in output.rglob("events.out.tfevents.*") if path.stat().st_size > 0]
