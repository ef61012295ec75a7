"""The processor cores and the memory that this process may use.

Containers and batch systems limit both by control groups, of which Linux has two versions:
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """The processor cores that this process may use, alone or together with others of its run."""
    return min(_affinity(), _quota())


def cores_per_process() -> int:
    """The cores for each process of this run: those it is bound to, else an equal part of the machine's."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    bound = _affinity() < (os.cpu_count() or 1)
    return max(1, min(_affinity() if bound else _affinity() // processes, _quota() // processes))


def memory() -> int:
    """Bytes of main memory that this process may still use, alone or together with others of its run."""
    free = psutil.virtual_memory().available
    for group in _groups("memory"):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if limit and used and limit != ["max"]:
            words = _words(group / "memory.stat")
            statistics = dict(zip(words[::2], words[1::2], strict=False))
            # Page cache that the system can drop. In version 1, `total_` includes the groups inside.
            cached = int(statistics.get("total_inactive_file") or statistics.get("inactive_file", 0))
            free = min(free, int(limit[0]) - int(used[0]) + cached)
    return max(0, free)


def can_fork() -> bool:
    """Whether forking is safe: on Linux, while this process has one thread and has not imported torch."""
    return sys.platform.startswith("linux") and threading.active_count() == 1 and "torch" not in sys.modules


def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16 natively (AVX-512 BF16 or AMX)."""
    import torch

    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


def _quota() -> int:
    """The cores that control groups allow, rounded up; `sys.maxsize` where they set no limit."""
    lowest = sys.maxsize
    for group in _groups("cpu"):
        words = _words(group / "cpu.max")
        words = words or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            lowest = min(lowest, max(1, math.ceil(int(words[0]) / int(words[1]))))
    return lowest


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups and of all enclosing ones: the limit of each holds.

    In a container the path may be the host's. Then the container's own group is at the root.
    """
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, group = GROUPS / controller if controllers else GROUPS, Path(path.lstrip("/"))
        yield from (top / inner for inner in (group, *group.parents))


def _words(file: Path) -> list[str]:
    return _read(file).split()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
