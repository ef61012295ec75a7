"""The files of launch/: Accelerate reads each configuration, and those that a CPU can run train."""

import json
import os
import socket
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from support import ROOT, with_defaults

CONFIGS = sorted(path.name for path in (ROOT / "launch").glob("*.yaml") if path.name != "sweep.yaml")
ON_A_CPU = {"cpu.yaml": 1, "cpu_2proc.yaml": 2, "bf16.yaml": 1}


def launch(config: str, words: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/{config}", "--quiet"]
    return subprocess.run([*command, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(ON_A_CPU))
def test_each_configuration_that_a_cpu_can_run_trains(config, image_folder, tmp_path):
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run"), "--precision", "auto"])
    done = launch(config, words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["num_processes"], summary["device"]) == (ON_A_CPU[config], "cpu")
    if config == "bf16.yaml":
        assert summary["precision"] == "bf16"


@pytest.mark.slow
def test_fp16_without_a_gpu_is_refused(image_folder, tmp_path):
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run"), "--precision", "auto"])
    done = launch("fp16.yaml", words)
    assert done.returncode != 0
    assert "error: Accelerate was launched with fp16, which needs a GPU" in done.stderr


@pytest.mark.slow
def test_several_machines_form_one_run(image_folder, tmp_path):
    """Two launchers on one machine, each as a machine of its own with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run")])
    options = ["--config_file", "launch/multi_node.yaml", "--num_processes", "2", "--main_process_port", port]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    machines = [
        subprocess.Popen([*command, "--machine_rank", str(rank), "train.py", *words], cwd=ROOT) for rank in (0, 1)
    ]
    assert [machine.wait(120) for machine in machines] == [0, 0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_processes"] == 2


def test_accelerate_reads_every_configuration():
    seen = {}
    for name in CONFIGS:
        config = load_config_from_file(str(ROOT / "launch" / name))
        seen[name] = (str(config.distributed_type.value), config.num_machines, config.num_processes)
    assert seen == {
        "bf16.yaml": ("NO", 1, 1),
        "cpu.yaml": ("NO", 1, 1),
        "cpu_2proc.yaml": ("MULTI_GPU", 1, 2),
        "fp16.yaml": ("NO", 1, 1),
        "gpu.yaml": ("NO", 1, 1),
        "multi_gpu.yaml": ("MULTI_GPU", 1, 2),
        "multi_node.yaml": ("MULTI_GPU", 2, 16),
    }


@pytest.mark.parametrize("place", ["", "fold-2/"], ids=["a run", "a cross-validation"])
def test_a_job_that_was_stopped_is_requeued_and_resumes(tmp_path, place):
    """slurm_run.sh, with Slurm's commands replaced by some that write down how they were called."""
    calls, run = tmp_path / "calls", tmp_path / "run"
    for name in ("srun", "scontrol"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/bash\necho {name} "$@" >> {calls}\necho JobState=RUNNING\n[ {name} = scontrol ]\n')
        command.chmod(0o755)
    (run / place).mkdir(parents=True)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def start() -> str:
        calls.unlink(missing_ok=True)
        script = f"output={run}\n. launch/slurm_run.sh"
        subprocess.run(["bash", "-c", script, "job", "--recipe", "best"], cwd=ROOT, env=environment, check=False)
        return calls.read_text()

    first = start()
    assert "--recipe best" in first
    assert "--resume" not in first
    assert "requeue" not in first
    (run / place / "config.json").touch()
    (run / place / "resume-me").touch()
    second = start()
    assert f"--output {run} --resume" in second
    assert "scontrol requeue 7" in second


def test_every_file_says_how_it_is_used():
    files = [path for path in (ROOT / "launch").iterdir() if path.is_file()]
    assert len(files) >= 11
    for path in files:
        text = path.read_text()
        if path.name != "slurm_run.sh":
            assert f"launch/{path.name}" in text, path.name
        if path.suffix == ".sh":
            assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0, path.name
