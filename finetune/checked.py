"""Which image files were found to decode, remembered between runs, so that a large folder is not decoded at each start.

A file is looked at again when its size or its time of modification has changed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

MANY = 100  # fewer files than this are decoded in a tenth of a second: not worth remembering


def place() -> Path:
    """The file in which it is remembered."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune" / "checked.sqlite"


def reasons(paths: list[str], look: Callable[[list[str]], Iterable[str]]) -> dict[str, str]:
    """Why files do not decode, for those that do not; `look` gives the reasons, empty for good files, in order.

    Where nothing can be remembered (a folder that cannot be written, a damaged file), every file is looked at.
    """
    if len(paths) < MANY:
        return {path: why for path, why in zip(paths, look(paths), strict=True) if why}
    here = str(Path.cwd())
    names = [os.path.join(here, path) for path in paths]
    states = [(entry.st_size, entry.st_mtime_ns) for entry in map(os.stat, paths)]
    known = _recall({name.rpartition(os.sep)[0] for name in names})
    new = [k for k, name in enumerate(names) if known.get(name, ())[:2] != states[k]]
    whys = [known[name][2] if name in known else "" for name in names]
    for k, why in zip(new, look([paths[k] for k in new]), strict=True):
        whys[k] = why
    _remember([(names[k], *states[k], whys[k]) for k in new])
    return {path: why for path, why in zip(paths, whys, strict=True) if why}


def _recall(folders: set[str]) -> dict[str, tuple[int, int, str]]:
    """Size, time and reason of the files below what these folders have in common."""
    common = os.path.commonpath(folders)
    query = "SELECT path, size, time, why FROM checked WHERE path >= ? AND path < ?"
    try:
        with closing(sqlite3.connect(place(), timeout=10)) as file:
            rows = file.execute(query, (common, common + "\U0010ffff"))
            return {path: (size, time, why) for path, size, time, why in rows}
    except sqlite3.Error:
        return {}


def _remember(rows: list[tuple[str, int, int, str]]) -> None:
    if not rows:
        return
    try:
        place().parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place(), timeout=10)) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS checked (path TEXT PRIMARY KEY, size INT, time INT, why TEXT)")
            file.executemany("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError):
        return
