"""How this process was launched: by which launcher, and as one of how many processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

from finetune.errors import UserError

# The number of processes as the common launchers name it.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHERS = {
    *("accelerate", "accelerate.commands.launch", "accelerate-launch", "launch.py"),
    *("torchrun", "torch.distributed.run"),
}
PR_SET_PDEATHSIG = 1  # prctl(2)
CURE = "Launch with `accelerate launch --config_file launch/cpu_2proc.yaml` or launch/multi_gpu.yaml, or with torchrun."


def launcher_arguments() -> list[str]:
    """The parent process's arguments if it is a launcher (Accelerate's or torchrun), else none."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return words if LAUNCHERS & {Path(word).name for word in words[:4]} else []


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the launcher that started this process dies: it would leave an orphan.

    Accelerate's launcher of one process forwards no signal, torchrun no SIGKILL: training would go on unnoticed and
    occupy the device. Does nothing without a launcher, and on systems other than Linux.
    """
    if launcher_arguments() and sys.platform.startswith("linux"):
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """Ask the kernel, Linux's, for a SIGTERM when the parent of this process dies (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGTERM)


def check_processes(joined: int) -> None:
    """Raise `UserError` where the launched processes are not one run; `joined` is their number in this run."""
    launched = next((int(os.environ[name]) for name in WORLD_SIZES if os.environ.get(name, "").isdigit()), 1)
    if launched != joined:
        raise UserError(
            f"{launched} processes were launched but do not form one run (this one sees {joined}): each would train "
            f"alone. {CURE}"
        )
    nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if nodes > joined or (nodes > 1 and os.environ.get("GROUP_WORLD_SIZE") == "1"):
        raise UserError(
            f"Slurm started {nodes} tasks, each with a run of its own of {joined} processes. Use launch/"
            f"slurm_multi_node.sh, or give torchrun --nnodes {nodes} --node-rank $SLURM_NODEID --master-addr."
        )
    if (asked := _asked_processes()) > joined:
        raise UserError(
            f"Accelerate was asked for {asked} processes and started {joined}: with --cpu it does so silently. {CURE}"
        )


def _asked_processes() -> int:
    """The launcher's `--num_processes`; 1 where it was not given."""
    words = launcher_arguments()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value if equals else following
            return int(value) if value.isdigit() else 1
        if word.endswith(".py") and Path(word).name not in LAUNCHERS:
            break  # the rest are the script's arguments
    return 1
