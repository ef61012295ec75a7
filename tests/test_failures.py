"""When one process cannot go on, none waits for it: its message comes first, and the run can be resumed."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch
from conftest import ROOT, with_defaults
from test_resume import wait_for

from finetune import groups, launcher, loss, samples
from finetune.errors import UserError

FLAGS = ("--recipe", "finetune", "--epochs", "5000", "--checkpoint-every", "1")


def test_an_image_that_goes_bad_on_one_rank_ends_all_with_its_message_first(start, monkeypatch):
    original, begun = samples.load, time.monotonic()

    def load(item, channels):
        if time.monotonic() - begun > 3 and str(item).endswith("train/blue/03.jpg"):
            raise UserError(f"{item} does not decode: it is gone")
        return original(item, channels)

    monkeypatch.setattr(samples, "load", load)
    run = start("run", *FLAGS, "--no-cache-images", "--workers", "1", processes=2)
    assert sorted(run.wait(60)) == [1, 2], run.said
    assert run.said.count("error: ") == 1
    assert "blue/03.jpg does not decode: it is gone" in run.said
    assert run.said.index("it is gone") < run.said.index("another process of this run ended")
    assert "Traceback" not in run.said


def test_a_rank_that_is_killed_takes_the_other_down_with_a_line_that_says_so(start):
    run = start("run", *FLAGS, processes=2)
    wait_for("checkpoints/0001-*", run)
    run.signal(signal.SIGKILL, rank=1)
    sent = time.monotonic()
    assert run.wait(60) == [1, -signal.SIGKILL], run.said
    assert time.monotonic() - sent < 10
    assert "Rank 0: another process of this run ended" in run.said
    assert "Traceback" not in run.said


def test_a_mistake_that_all_find_is_told_once(start):
    run = start("run", "--recipe", "last_layers", "--layers", "99", processes=2)
    assert run.wait(60) == [2, 2]
    assert run.said.count("error: last_layers: --layers 99") == 1, run.said
    assert "omitting" not in run.said, "no noise of the connection"


def test_out_of_memory_says_which_setting_to_lower_and_to_what(start, monkeypatch):
    original = groups.make_optimizer

    def make_optimizer(*arguments):
        # Enough for the images (62 MB), not for the first layer's maps (197 MB). Close to a limit, what fails first may
        # be oneDNN making a kernel, whose error does not say why.
        limit = psutil.Process().memory_info().vms + 120 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return original(*arguments)

    monkeypatch.setattr(groups, "make_optimizer", make_optimizer)
    large = ("--model", "squeezenet1_0", "--image-size", "512", "--batch-size", "16", "--epochs", "1")
    run = start("run", "--recipe", "finetune", *large)
    assert run.wait(60) == [2], run.said
    assert "error: out of memory. An update was estimated to need" in run.said
    assert "Use --accumulate 2 (the result stays the same) or --batch-size 8" in run.said
    assert "Traceback" not in run.said


def test_the_gpus_own_error_gets_the_same_message(train, monkeypatch, capsys):
    def cross_entropy(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loss, "cross_entropy", cross_entropy)
    assert train("--batch-size", "8")[0] == 2
    assert "error: out of memory. An update was estimated to need" in capsys.readouterr().err


# ---- launchers -------------------------------------------------------------------------------------------------------
LAUNCHERS = {
    "accelerate, one process": ("accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    "accelerate, two": ("accelerate.commands.launch", "--config_file", str(ROOT / "launch" / "cpu_2proc.yaml")),
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
}


@pytest.mark.parametrize(
    ("launched", "number"),
    [
        ("accelerate, one process", signal.SIGTERM),
        pytest.param("accelerate, one process", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("accelerate, two", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("accelerate, two", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("torchrun", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("torchrun", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_launcher_that_is_told_to_end_leaves_a_checkpoint_and_no_orphan(launched, number, image_folder, tmp_path):
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
        _, alive = psutil.wait_procs(started, timeout=30)  # with the processes that draw for them
        assert not alive, (tmp_path / "log").read_text()
        assert running.wait(30) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert (output / "resume-me").exists(), (tmp_path / "log").read_text()


def test_processes_that_were_asked_for_and_not_started_are_refused(image_folder, tmp_path):
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run")])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--quiet"]
    done = subprocess.run([*command, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "error: Accelerate was told 2 processes and started 1" in done.stderr
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
def test_what_the_environment_says_of_the_processes_is_checked(environment, joined, message, monkeypatch):
    for name in (*launcher.WORLD_SIZES, "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message is None:
        launcher.check_processes(joined)
    else:
        with pytest.raises(UserError, match=message):
            launcher.check_processes(joined)
