"""The scripts of launch/ on a real Slurm cluster of two nodes, brought up on one Debian machine.

python -m pytest -m slurm -n 0        # as root; installs Slurm's packages where they are missing
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import wandb_file
from safetensors.torch import load_file
from support import ROOT, metrics, write_images

HERE = Path(__file__).parent
pytestmark = pytest.mark.slurm
# 100 epochs of a fifth to half a second: long enough to be interrupted on a fast machine.
TRAINING = "--recipe finetune --model mobilenet_v3_small --image-size 32 --weights none --batch-size 8 --precision no"
UNDER_WAY = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "NODE_FAIL")
MULTI, ARRAY = "launch/slurm_multi_node.sh", "launch/slurm_array.sh"


class Cluster:
    """Commands on the cluster; `submit` gives the job's number, `wait` its last state."""

    def __init__(self, place: Path, home: Path) -> None:
        self.place, self.home = place, home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
            **{"SLURMTEST_DIR": str(place), "SLURM_CONF": str(place / "slurm.conf"), "GRACE": "60"},
            **{"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            **{"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        }

    def run(self, *command: str, **more: str) -> str:
        environment = self.environment | more
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def submit(self, script: str, *flags: str, options: tuple[str, ...] = (), **more: str) -> str:
        log = f"--output={self.home}/%A-%a.out" if "array" in script else f"--output={self.home}/%j.out"
        said = self.run("sbatch", "--parsable", "--cpus-per-task=1", log, *options, script, *flags, **more)
        return said.strip()

    def state(self, job: str) -> str:
        return re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job)).group(1)

    def restarts(self, job: str) -> int:
        return int(re.search(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job)).group(1))

    def seconds(self, job: str) -> int:
        """The job's running time."""
        hours, minutes, seconds = re.search(
            r"RunTime=(\d+):(\d+):(\d+)", self.run("scontrol", "show", "job", job)
        ).groups()
        return 3600 * int(hours) + 60 * int(minutes) + int(seconds)

    def wait(self, job: str, seconds: float = 300) -> str:
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) in UNDER_WAY:
            assert time.monotonic() < deadline, f"{state}\n{self.said(job)}"
            time.sleep(1)
        return state

    def said(self, job: str) -> str:
        path = self.home / f"{job}.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if sys.platform != "linux" or os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("a cluster can be brought up by root on Debian")
    place, home = Path(f"/tmp/slurm{os.getpid()}"), tmp_path_factory.mktemp("jobs")  # sockets want short paths
    up = Cluster(place, home)
    begun = subprocess.run(["bash", str(HERE / "cluster-up.sh")], env=up.environment, capture_output=True, text=True,
                           check=False)  # fmt: skip
    if "apt-get install failed" in begun.stderr:
        pytest.skip("Slurm's packages are not here and cannot be installed")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    yield up
    up.run("bash", str(HERE / "cluster-down.sh"), "--purge")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 7)
    write_images(folder / "val", 3, seed=1)
    return (*TRAINING.split(), "--data", str(folder), "--epochs", "100")


@pytest.fixture(scope="module")
def whole(cluster, training) -> Path:
    """An uninterrupted run of two nodes."""
    output = cluster.home / "whole"
    job = cluster.submit(MULTI, *training, OUTPUT=str(output))
    assert cluster.wait(job) == "COMPLETED", cluster.said(job)
    assert cluster.restarts(job) == 0
    return output


def wait_for_epoch(output: Path, epoch: int) -> None:
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len(metrics(output)) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def held(job: str) -> Iterator[list[psutil.Process]]:
    """The job's two ranks, suspended: a fast machine would train to the end meanwhile."""
    known = [(p, p.info["cmdline"] or [], p.info["environ"] or {}) for p in psutil.process_iter(["cmdline", "environ"])]
    ours = [p for p, words, variables in known if words[1:2] == ["train.py"] and variables.get("SLURM_JOB_ID") == job]
    ranks = [p for p in ours if p.ppid() not in {other.pid for other in ours}]  # without their image workers
    assert len(ranks) == 2
    try:
        for rank in ranks:
            rank.suspend()
        yield ranks
    finally:
        for rank in ranks:
            rank.resume()


def wait_for_signal(ranks: list[psutil.Process], number: int) -> None:
    """Wait until the signal is pending for each of them."""
    deadline = time.monotonic() + 120
    for rank in ranks:
        pending = 0
        while not pending >> (number - 1) & 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            status = Path(f"/proc/{rank.pid}/status").read_text()
            pending = int(re.search(r"ShdPnd:\s*(\w+)", status).group(1), 16)


def assert_same(whole: Path, output: Path) -> None:
    assert metrics(whole) == metrics(output)
    first, second = ((folder / "model" / "model.safetensors").read_bytes() for folder in (whole, output))
    assert first == second


def assert_logged_once(output: Path) -> None:
    """W&B has one run, all its epochs, and no step twice or out of order, over however many starts."""
    files = sorted(output.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1, "one id"
    rows = [row for path in files for row in wandb_file.ended(path).rows]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert [row["epoch"] for row in rows if "val_loss" in row] == list(range(1, 101))


def test_two_nodes_train_one_run_to_the_end(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["num_processes"], summary["epochs_run"]) == (2, 100)
    assert load_file(whole / "model" / "model.safetensors")
    assert_logged_once(whole)


def test_a_time_limit_costs_nothing(cluster, training, whole):
    output = cluster.home / "limit"
    job = cluster.submit(MULTI, *training, options=("--time=10", "--signal=B:USR1@45"), OUTPUT=str(output))
    wait_for_epoch(output, 5)
    with held(job) as ranks:
        # Slurm looks at the clock twice a minute, and counts in whole ones: leave 40 to 100 seconds.
        cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={(cluster.seconds(job) + 40) // 60 + 1}")
        wait_for_signal(ranks, signal.SIGUSR1)
        cluster.run("scontrol", "update", f"jobid={job}", "timelimit=10")  # for its second start
    assert cluster.wait(job) == "COMPLETED", cluster.said(job)
    assert cluster.restarts(job) == 1
    assert "Stopped by SIGUSR1" in cluster.said(job)
    assert_same(whole, output)
    assert_logged_once(output)


def test_preemption_costs_nothing(cluster, training, whole):
    output = cluster.home / "preempted"
    job = cluster.submit(MULTI, *training, OUTPUT=str(output))
    wait_for_epoch(output, 5)
    other = cluster.run("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 5")
    assert cluster.wait(other.strip()) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", cluster.said(job)
    assert cluster.restarts(job) == 1
    assert "Stopped by SIGTERM" in cluster.said(job)
    assert_same(whole, output)


def test_a_node_that_dies_costs_nothing_but_its_last_epoch(cluster, training, whole):
    output = cluster.home / "crashed"
    job = cluster.submit(MULTI, *training, OUTPUT=str(output))
    wait_for_epoch(output, 5)
    cluster.run("bash", str(HERE / "cluster-node.sh"), "crash", "n2")
    time.sleep(5)
    cluster.run("bash", str(HERE / "cluster-node.sh"), "start", "n2")
    state = cluster.wait(job)
    if state != "COMPLETED":  # the other rank ended the job before Slurm missed the node: submit it again
        job = cluster.submit(MULTI, *training, OUTPUT=str(output))
        state = cluster.wait(job)
    assert state == "COMPLETED", cluster.said(job)
    assert "Resuming from" in cluster.said(job)
    assert_same(whole, output)


def test_an_array_trains_a_run_per_seed(cluster, training):
    output = cluster.home / "seeds"
    few = (*training[:-1], "2")
    job = cluster.submit(ARRAY, *few, options=("--array=0-2",), OUTPUT=str(output))
    for seed in range(3):
        assert cluster.wait(f"{job}_{seed}") == "COMPLETED", (cluster.home / f"{job}-{seed}.out").read_text()
    configs = [json.loads((output / f"seed-{seed}" / "config.json").read_text()) for seed in range(3)]
    assert [config["seed"] for config in configs] == [0, 1, 2]


def test_two_tasks_that_would_each_train_alone_are_refused(cluster, training, tmp_path):
    command = ["srun", "-N2", "-n2", sys.executable, "train.py", *training, "--output", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "2 processes were launched but do not form one run" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_cancelled_saves_and_stays_cancelled(cluster, training):
    output = cluster.home / "cancelled"
    job = cluster.submit(MULTI, *training, OUTPUT=str(output))
    wait_for_epoch(output, 3)
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    time.sleep(10)
    assert cluster.state(job) == "CANCELLED", "it does not come back"
    assert (output / "resume-me").exists()


def test_a_job_that_is_preempted_while_it_starts_comes_back(cluster, training):
    output = cluster.home / "early"
    job = cluster.submit(MULTI, *training[:-1], "2", OUTPUT=str(output))
    while cluster.state(job) == "PENDING":
        time.sleep(0.1)
    time.sleep(1.5)  # Python is importing
    other = cluster.run("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 5")
    assert cluster.wait(other.strip()) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", cluster.said(job)
    assert cluster.restarts(job) == 1
    assert len(metrics(output)) == 2
