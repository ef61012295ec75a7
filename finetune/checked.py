"""Which image files were found to decode, remembered between runs, so that a large folder is not decoded at each start.

A file is looked at again when its size or its time of modification has changed.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from finetune import entry

MANY = 100  # fewer files than this are decoded in a tenth of a second: not worth remembering


def place() -> Path:
    """The file in which it is remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune" / "checked.sqlite"


def reasons(paths: list[str], look: Callable[[list[str], bool], Iterable[str]]) -> dict[str, str]:
    """Why files do not decode, for those that do not; `look` gives the reasons, empty for good files, in order.

    `look` is also told whether the other processes of its run wait meanwhile. Where nothing can be remembered (a folder
    that cannot be written, a damaged file), every file is looked at.
    """
    if len(paths) < MANY:
        return {path: why for path, why in zip(paths, look(paths, False), strict=True) if why}
    here = str(Path.cwd())
    names = [os.path.join(here, path) for path in paths]
    states = [(state.st_size, state.st_mtime_ns) for state in map(os.stat, paths)]
    top = os.path.commonpath({name.rpartition(os.sep)[0] for name in names})

    def new() -> list[int]:
        return [k for k, name in enumerate(names) if known.get(name, ())[:2] != states[k]]

    known = _recall(top)
    if new():
        with _turn(top) as alone:
            known = _recall(top)  # another process may have looked at them
            chosen = new()
            whys = look([paths[k] for k in chosen], alone) if chosen else []
            found = {names[k]: (*states[k], why) for k, why in zip(chosen, whys, strict=True)}
            _remember(found)
            known |= found
    return {path: known[name][2] for path, name in zip(paths, names, strict=True) if known[name][2]}


@contextmanager
def _turn(top: str) -> Iterator[bool]:
    """Let one process at a time look at what is below a folder: those of one run would all look at the same files.

    False where files cannot be locked: there each looks for itself.
    """
    path, state = place().with_suffix(".lock"), Path(top).stat()
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except (ImportError, OSError):
        yield False
        return
    main_process = os.environ.get("LOCAL_RANK", "0") == "0"
    if not main_process:
        entry.import_torch()  # it is needed next anyway; so the main process is the first, and shows how far it is
    # A byte of the file stands for the folder. One of the same name on another machine's disk is another folder.
    said = f"{top} {state.st_ino} {state.st_mtime_ns}"
    byte = int.from_bytes(blake2b(said.encode(), digest_size=7).digest(), "big")
    with file:
        try:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except (BlockingIOError, PermissionError):  # POSIX leaves the choice
                if main_process:
                    told = f"Waiting for another process, which looks at new images in {top} (its lock is on {path})."
                    print(told, file=sys.stderr)
                fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
        except OSError:  # a file system without locks
            alone = False
        else:
            alone = True
        yield alone


def _recall(top: str) -> dict[str, tuple[int, int, str]]:
    """Size, time and reason of the files below a folder."""
    query = "SELECT path, size, time, why FROM checked WHERE path >= ? AND path < ?"
    try:
        with closing(sqlite3.connect(place(), timeout=10)) as file:
            rows = file.execute(query, (top, top + "\U0010ffff"))
            return {path: (size, time, why) for path, size, time, why in rows}
    except sqlite3.Error:
        return {}


def _remember(found: dict[str, tuple[int, int, str]]) -> None:
    if not found:
        return
    try:
        place().parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place(), timeout=10)) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS checked (path TEXT PRIMARY KEY, size INT, time INT, why TEXT)")
            rows = ((name, *known) for name, known in found.items())
            file.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError):
        return
