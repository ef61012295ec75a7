"""Launchers: two processes train what one does, a launcher that ends leaves no orphan, a wrong launch is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, accelerate, launch, metrics, with_defaults

from finetune.errors import UserError
from finetune.runtime import launcher

FLAGS = ("--recipe", "finetune", "--epochs", "5000", "--checkpoint-every", "1")


@pytest.mark.slow
def test_two_processes_end_with_the_weights_and_scores_of_one(image_folder, tmp_path):
    one = launch([sys.executable], tmp_path / "one", image_folder, "--precision", "no")
    assert one.returncode == 0, one.stderr
    config = str(ROOT / "launch" / "cpu_2proc.yaml")
    two = launch(accelerate("--config_file", config), tmp_path / "two", image_folder, "--precision", "no")
    assert two.returncode == 0, two.stderr
    assert "2 on cpu" in two.stdout
    assert two.stdout.count("Best validation accuracy") == 1, "the main process alone speaks"
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["num_processes"], summary["val_images"], summary["precision"]) == (2, 9, "no")
    for line, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
            assert line[key] == pytest.approx(other[key], abs=1e-6), key
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_no_from_the_plain_launcher_is_no_choice_of_precision(image_folder, tmp_path):
    done = launch(accelerate("--mixed_precision", "no"), tmp_path / "run", image_folder, "--plan")
    assert done.returncode == 0, done.stderr
    assert "as Accelerate was launched" not in done.stdout
    done = launch(accelerate("--mixed_precision", "bf16"), tmp_path / "run", image_folder, "--plan")
    assert "bf16 (as Accelerate was launched)" in done.stdout
    assert not (tmp_path / "run").exists()


LAUNCHERS = {
    "accelerate, one process": ("accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    "accelerate, two": ("accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "cpu_2proc.yaml")),
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("launched", LAUNCHERS)
def test_a_launcher_that_is_ended_leaves_a_checkpoint_and_no_orphan(launched, number, image_folder, tmp_path):
    output = tmp_path / "run"
    words = with_defaults([*FLAGS, "--data", str(image_folder), "--output", str(output)])
    command = [sys.executable, "-m", *LAUNCHERS[launched], "train.py", *words]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(output.glob("checkpoints/0001-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        started = psutil.Process(running.pid).children(recursive=True)
        ranks = [child for child in started if child.ppid() == running.pid and "train.py" in child.cmdline()]
        assert len(ranks) == (1 if "one" in launched else 2)
        running.send_signal(number)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive, (tmp_path / "log").read_text()
        assert running.wait(30) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert (output / "resume-me").exists(), (tmp_path / "log").read_text()


@pytest.mark.slow
def test_processes_that_were_asked_for_and_not_started_are_refused(image_folder, tmp_path):
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--quiet"]
    done = subprocess.run([*command, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "error: Accelerate was asked for 2 processes and started 1" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "joined", "message"),
    [
        ({"WORLD_SIZE": "2"}, 1, "2 processes were launched but do not form one run"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "4 processes were launched"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, 1, "2 processes were launched"),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, 8, "Slurm started 2 tasks, each"),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, 8, None),
        ({"SLURM_NTASKS": "2"}, 1, None),
        ({}, 1, None),
    ],
)
def test_the_launched_processes_must_be_one_run(environment, joined, message, monkeypatch):
    for name in (*launcher.WORLD_SIZES, "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message is None:
        launcher.check_processes(joined)
    else:
        with pytest.raises(UserError, match=message):
            launcher.check_processes(joined)
