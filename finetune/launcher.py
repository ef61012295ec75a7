"""How this process was launched: read from its environment and from its parent's arguments."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from finetune.errors import UserError

# The number of processes as the common ways to start them name it.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
PR_SET_PDEATHSIG = 1  # prctl(2)
CURE = "Launch with `accelerate launch --config_file launch/cpu_2proc.yaml` or launch/multi_gpu.yaml, or with torchrun."


def words() -> list[str]:
    """The parent's arguments if it is a launcher (Accelerate's or torchrun), else none."""
    try:
        said = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    names = {Path(word).name for word in said[:4]}
    launchers = ("accelerate", "accelerate.commands.launch", "accelerate-launch", "launch.py", "torchrun")
    return said if names & {*launchers, "torch.distributed.run"} else []


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the launcher that started this process dies: it would leave an orphan.

    Accelerate's launcher of one process forwards no signal, torchrun none that kills it: training would go on unseen
    and keep the device. On Linux; elsewhere, and without a launcher, this does nothing.
    """
    if words() and sys.platform.startswith("linux"):
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """Ask the kernel, Linux's, for a SIGTERM when the parent of this process dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGTERM)


def option(name: str) -> str | None:
    """The value of the launcher's option, from its own arguments or else from its configuration file; None if unset."""
    flag = name.replace("_", "-")
    said = _argument(flag)
    return said if said is not None else _configuration().get(name)


def _argument(flag: str) -> str | None:
    for k, word in enumerate(words()):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == f"--{flag}":
            return value if equals else (words()[k + 1] if k + 1 < len(words()) else "")
        if word.endswith(".py") and Path(word).name not in ("launch.py", "run.py"):
            return None  # what follows are the script's own
    return None


def _configuration() -> dict[str, Any]:
    named = _argument("config-file")
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    try:
        read = yaml.safe_load(Path(named or home / "accelerate/default_config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def precision() -> str | None:
    """The mixed precision that someone chose for Accelerate, or None.

    The launcher sets ACCELERATE_MIXED_PRECISION in any case, to `no` where nothing was said. Whether a `no` was
    somebody's word stands only in the launcher's own arguments or its configuration file.
    """
    value = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if value not in ("", "no", "bf16", "fp16"):
        raise UserError(f"Accelerate was told the precision {value}, which is not supported. Say no, bf16 or fp16.")
    if value != "no" or not words():
        return value or None  # without a launcher, somebody set the variable
    return value if option("mixed_precision") is not None else None


def check_processes(joined: int) -> None:
    """A `UserError` where what was launched as one run of several processes is not one; `joined` form this run."""
    asked = next((int(os.environ[name]) for name in WORLD_SIZES if os.environ.get(name, "").isdigit()), 1)
    if asked != joined:
        raise UserError(
            f"{asked} processes were launched but do not form one run (this one sees {joined}): each would train for "
            f"itself. {CURE}"
        )
    nodes = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if nodes > joined or (nodes > 1 and os.environ.get("GROUP_WORLD_SIZE") == "1"):
        raise UserError(
            f"Slurm started {nodes} tasks, each with a run of its own of {joined} processes. Use launch/"
            f"slurm_multi_node.sh, or give torchrun --nnodes {nodes} --node-rank $SLURM_NODEID --master-addr."
        )
    told = option("num_processes") or os.environ.get("ACCELERATE_NUM_PROCESSES") or 1
    if words() and str(told).isdigit() and int(told) > joined:
        raise UserError(
            f"Accelerate was told {told} processes and started {joined}: with --cpu, and with MULTI_CPU in a "
            f"configuration, it does so without a word. {CURE}"
        )
