"""Run one hostile case in a forked process, with limits of time and memory and without root's privileges.

To add a case: append a row to the table `CASES` of its kind, `test_csv.py`, `test_paths.py`, … A row makes the thing in
an empty folder and gives the command line, and says which words the message has: the name of the thing, and of a cure.
All cases run with `python -m pytest -n 0 tests/hostile -m "slow or not slow"`; by default one in a few of each table.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

# Imported here, once: each case is forked from this process.
import pytest
from support import reset_accelerate, restore_signals, with_defaults

import train as script  # noqa: F401

SECONDS = 10  # for a case
MEMORY = 2**30  # bytes beyond those of the process that forks
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # capabilities(7)


class Place(NamedTuple):
    """Where a case is made: an empty folder, which is the working folder, and things to copy or to use unchanged."""

    folder: Path
    photos: Path
    """train/ and val/ with three classes."""
    run: Path
    """The folder of a run that has ended."""
    stopped: Callable[[], Path]
    """Gives the folder of a run with two checkpoints."""


class Case(NamedTuple):
    """One hostile thing."""

    name: str
    make: Callable[[Place], Sequence[object]]
    """Makes it, and returns the command line: `train` or a command of `python -m finetune`, then its arguments."""
    says: tuple[str, ...]
    """Words of the message: the name of the thing, and of a cure."""
    code: int = 2
    """The exit code."""
    environment: Mapping[str, str | None] = MappingProxyType({})
    """Environment variables; None: unset."""


class End(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


def params(cases: Sequence[Case], every: int) -> list[object]:
    """The cases for `parametrize`: one in `every` runs by default, all others with `-m slow`."""
    quick = [case.code == 2 and k % every == 0 for k, case in enumerate(cases)]  # what ends well has its work to do
    return [
        pytest.param(case, id=case.name, marks=() if runs else pytest.mark.slow)
        for case, runs in zip(cases, quick, strict=True)
    ]


def train(*words: object) -> list[str]:
    """The command line of a small training run, whose folder is `out`."""
    flags = list(map(str, words))
    more = [] if "--output" in flags else ["--output", "out"]
    return ["train", *with_defaults([*flags, *more])]


def listing(folder: Path) -> set[str]:
    """Everything in a folder, at any depth; links are not followed."""
    found = set()
    for parent, folders, names in os.walk(folder):
        found |= {os.path.join(parent, name) for name in (*folders, *names)}
    return found


def end_of(
    words: Sequence[object],
    folder: Path,
    environment: Mapping[str, str | None] = MappingProxyType({}),
    seconds: float = SECONDS,
) -> End:
    """Run a command in a folder, in a forked process, which is killed after so many seconds."""
    log = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(list(map(os.fspath, map(_word, words))), folder, log, environment)
    while time.monotonic() - began < seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.002)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    out, err = (path.read_bytes().decode(errors="surrogateescape") for path in log)
    return End(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - began)


def _word(word: object) -> str:
    return word if isinstance(word, str) else os.fspath(word) if isinstance(word, Path) else str(word)


def _run(words: list[str], folder: Path, log: list[Path], environment: Mapping[str, str | None]) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()
        for number, path in zip((1, 2), log, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ |= {"XDG_CACHE_HOME": str(folder.parent / "caches"), "HOME": str(folder.parent / "home")}
        for name, value in environment.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding=encoding) for number in (1, 2))
        as_an_ordinary_user()
        limit_memory()
        restore_signals()
        reset_accelerate()
        code = _exit_code(words)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _exit_code(words: list[str]) -> int:
    from finetune import __main__ as program
    from finetune.runtime import entry

    name, *arguments = words
    if name == "train":
        import train as program
    else:
        arguments = words
    sys.argv = ["program", *arguments]
    try:
        entry.run(program.main)
    except SystemExit as ended:
        sys.stdout.flush()
        return ended.code or 0


def as_an_ordinary_user() -> None:
    """Give up what lets root read and enter everything: file modes then hold for root's own files too (capset(2))."""
    if os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    library = ctypes.CDLL(None, use_errno=True)
    assert library.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    for k in (0, 1):
        sets[k] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert library.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def limit_memory() -> None:
    """Let this process take so much address space beyond what it has; torch's is far more than its memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check(case: Case, place: Place) -> End:
    """Run a case and assert that it ends as it must."""
    words = case.make(place)
    before = listing(place.folder)
    seconds = SECONDS if case.code else 120  # one that ends well has its work to do
    end = end_of(words, place.folder, case.environment, seconds)
    shown = f"{words}\n{end.out[-2000:]}\n{end.err[-6000:]}"
    assert end.seconds < seconds, f"still running after {seconds} s: {shown}"
    assert end.code == case.code, f"exit code {end.code}: {shown}"
    assert "Traceback" not in end.err + end.out, shown
    if case.code == 2:
        assert end.err.count("error: ") + end.err.count("─ Parsing error") <= 2, shown
        assert "out of memory" not in end.err, shown
        assert listing(place.folder) == before, f"{sorted(listing(place.folder) ^ before)}: {shown}"
    missing = [word for word in case.says if word not in end.out + end.err]
    assert not missing, f"{missing} not in: {shown}"
    return end
