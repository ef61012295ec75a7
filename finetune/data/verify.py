"""Decode every image file once before training, and remember what was found: whether it decodes, and its facts.

Results are in an SQLite database in the user's cache folder. A file is decoded again when its size or its time of
modification has changed. Where the database cannot be used (a folder that cannot be written, a damaged file), every
file is decoded at each start.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from finetune.data import exclusions
from finetune.data.facts import FACTS, VERSION, of_file
from finetune.errors import UserError
from finetune.runtime import cpu, entry, files, launcher

MANY = 100  # files; fewer are decoded in half a second: not worth a process
CHUNK = 64  # files per task of a worker
KEPT = 2048  # files that are decoded before they are remembered: as many are decoded again after a kill
SHOWN = 50 * CHUNK  # files; fewer need no progress line
TABLE = f"facts_{VERSION}"


class Checked(NamedTuple):
    """What is known of a file."""

    size: int
    time: int
    """Time of modification in ns."""
    why: str
    """Why it does not decode; empty if it does."""
    facts: bytes = b""
    """A record of `facts.FACTS`, where it was asked for; empty if it does not decode."""


def check(paths: list[str], skip_bad_images: bool, excluded: Collection[str] = ()) -> dict[str, str]:
    """Decode files; returns those that do not decode, each with the reason.

    Raises `UserError`, which names the first few of them, unless they may be skipped or are among the absolute paths
    `excluded`.
    """
    bad = undecodable(paths)
    unknown = [f"  {path}: {why}" for path, why in bad.items() if exclusions.absolute(path) not in excluded]
    if unknown and not skip_bad_images:
        shown = "\n".join(unknown[:5])
        more = f"\n  and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        many = "1 image does not decode" if len(unknown) == 1 else f"{len(unknown)} images do not decode"
        raise UserError(f"{many}:\n{shown}{more}\nFix or delete them, or train without: --skip-bad-images")
    return bad


def undecodable(paths: list[str]) -> dict[str, str]:
    """The files that do not decode, each with the reason. Files that are remembered are not decoded again."""
    return {path: known.why for path, known in zip(paths, checked(paths), strict=True) if known.why}


def facts(paths: list[str]) -> np.ndarray:
    """The facts of files, (N,) of `facts.FACTS`. Files that are remembered are not decoded again.

    Raises `UserError` for a file that does not decode: since `check` it has changed.
    """
    found = checked(paths, with_facts=True)
    for path, known in zip(paths, found, strict=True):
        if known.why:
            raise UserError(f"{path} has changed, and does not decode any more: {known.why}. Start again.")
    return np.frombuffer(b"".join(known.facts for known in found), FACTS)


def checked(paths: list[str], with_facts: bool = False) -> list[Checked]:
    """What is known of each file, after those that are new or have changed are decoded and remembered.

    Facts take 450 bytes an image, so they are kept only where they are asked for.
    """
    here = str(Path.cwd())
    names = [os.path.join(here, path) for path in paths]
    states = [_state(path) for path in paths]
    top = os.path.commonpath({name.rpartition(os.sep)[0] for name in names})

    def changed(known: dict[str, Checked]) -> list[int]:
        return [k for k, name in enumerate(names) if known.get(name, ())[:2] != states[k]]

    known = _recall(top, with_facts)
    if changed(known):
        with _one_process_at_a_time(top):
            known = _recall(top, with_facts)  # another process may have decoded them by now
            chosen, found = changed(known), {}
            for k, (why, record) in zip(chosen, decode_all([paths[k] for k in chosen]), strict=True):
                found[names[k]] = Checked(*states[k], why, record)
                known[names[k]] = found[names[k]] if with_facts else Checked(*states[k], why)
                if len(found) == KEPT:
                    _remember(found)
                    found = {}
            _remember(found)
    return [known[name] for name in names]


def _state(path: str) -> tuple[int, int]:
    """A file's size and time of modification; impossible ones of what cannot be looked at, as a link to nowhere."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def decode_all(paths: list[str]) -> Iterator[tuple[str, bytes]]:
    """For each file, in order, why it does not decode, empty for those that do, and its facts' bytes."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with entry.ctrl_c_kills(), _workers(len(paths)) as pool:
        for found in _with_progress(pool.map(_decode_chunk, chunks), len(paths)):
            yield from found


def _workers(count: int) -> Executor:
    """Processes, since Pillow parses files under the interpreter lock; threads where forking is unsafe."""
    workers = max(1, min(-(-count // CHUNK), cpu.cores()))
    if count < MANY or not cpu.can_fork():
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, get_context("fork"), launcher.end_with, (os.getpid(),))


def _with_progress(chunks: Iterable[list], count: int) -> Iterator[list]:
    """The same chunks; on a terminal, a line on stderr counts the files."""
    done, shown = 0, count >= SHOWN and sys.stderr.isatty()
    for found in chunks:
        yield found
        done += len(found)
        if shown:
            print(f"\rdecoding new images: {done} of {count}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _decode_chunk(paths: list[str]) -> list[tuple[str, bytes]]:
    return [_decode(path) for path in paths]


def _decode(path: str) -> tuple[str, bytes]:
    """Why a file does not decode, empty if it does, and its facts' bytes."""
    try:
        return "", of_file(path).tobytes()
    except Exception as error:  # Pillow's decoders raise many kinds, struct.error and SyntaxError among them
        return os.fsencode(str(error) or type(error).__name__).decode(errors="backslashreplace"), b""


def database() -> Path:
    """The path of the SQLite database."""
    return files.cache_folder() / "decoded-files.sqlite"


@contextmanager
def _one_process_at_a_time(top: str) -> Iterator[None]:
    """Hold the lock of a folder: of processes that start together, one decodes its files for all."""
    state = Path(top).stat()  # a folder of the same name on another machine's disk is another folder
    name = blake2b(os.fsencode(f"{top} {state.st_ino} {state.st_mtime_ns}"), digest_size=8).hexdigest()
    try:
        files.cache_folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(files.cache_folder() / f"decoding-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                message = f"Waiting for another process that decodes new images in {top} ({lock.lock_file})."
                print(message, file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError):  # a folder that cannot be written, a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _recall(top: str, with_facts: bool) -> dict[str, Checked]:
    """The remembered files below a folder."""
    columns = f"path, size, time, why{', facts' * with_facts}"
    query = f"SELECT {columns} FROM {TABLE} WHERE path >= ? AND path < ?"
    try:
        with closing(sqlite3.connect(database(), timeout=10)) as connection:
            rows = connection.execute(query, (os.fsencode(top), os.fsencode(top) + b"\xff"))
            return {os.fsdecode(path): Checked(*known) for path, *known in rows}
    except sqlite3.Error:
        return {}


def _remember(found: dict[str, Checked]) -> None:
    if not found:
        return
    try:
        database().parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database(), timeout=10)) as connection, connection:
            columns = "path BLOB PRIMARY KEY, size INT, time INT, why TEXT, facts BLOB"
            connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})")
            rows = ((os.fsencode(name), *known) for name, known in found.items())  # names may be no Unicode
            connection.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError):
        return
