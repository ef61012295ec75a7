"""The processor cores and the memory that this process may use.

Containers and batch systems limit both by control groups, of which Linux has two versions:
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """The processor cores that this process may use, be it alone or with others of its run."""
    return min(_affinity(), _quota())


def share() -> int:
    """The cores that are this process's own: those that it is bound to, else its part of the machine's."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    bound = _affinity() < (os.cpu_count() or 1)
    return max(1, min(_affinity() if bound else _affinity() // processes, _quota() // processes))


def memory() -> int:
    """The bytes of main memory that this process may still take, be it alone or with others of its run."""
    free = psutil.virtual_memory().available
    for group in _groups("memory"):
        most = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if most and used and most != ["max"]:
            words = _words(group / "memory.stat")
            held = dict(zip(words[::2], words[1::2], strict=False))
            # Files that the system keeps in memory for want of anything better. In version 1, `total_` counts the
            # groups inside.
            files = int(held.get("total_inactive_file") or held.get("inactive_file", 0))
            free = min(free, int(most[0]) - int(used[0]) + files)
    return max(0, free)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


def _quota() -> int:
    """The cores' worth of time that control groups allow, rounded up; `sys.maxsize` where they do not limit it."""
    least = sys.maxsize
    for group in _groups("cpu"):
        words = _words(group / "cpu.max")
        words = words or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            least = min(least, max(1, math.ceil(int(words[0]) / int(words[1]))))
    return least


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups and of those around them: a limit of each of them holds.

    In a container the path may be the host's. Then the container's own group is at the top.
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
