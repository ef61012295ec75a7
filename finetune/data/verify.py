"""Decode every image file once before training, and remember which files decode.

Results are in an SQLite database in the user's cache folder. A file is decoded again when its size or its time of
modification has changed. Where the database cannot be used (a folder that cannot be written, a damaged file), every
file is decoded at each start.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from finetune.data.image_files import to_8_bits
from finetune.errors import UserError
from finetune.runtime import cpu, entry, files, launcher

MANY = 100  # files; fewer are decoded in a tenth of a second: worth neither remembering nor a process
CHUNK = 64  # files per task of a worker
SHOWN = 50 * CHUNK  # files; fewer need no progress line
Known = tuple[int, int, str]  # size, time of modification in ns, and why the file does not decode (empty if it does)


def check(paths: list[str], skip_bad_images: bool) -> dict[str, str]:
    """Decode files; returns those that do not decode, each with the reason.

    Raises `UserError`, which names the first few of them, unless they may be skipped.
    """
    bad = undecodable(paths)
    if bad and not skip_bad_images:
        shown = "\n".join(f"  {path}: {why}" for path, why in list(bad.items())[:5])
        more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
        many = "1 image does not decode" if len(bad) == 1 else f"{len(bad)} images do not decode"
        raise UserError(f"{many}:\n{shown}{more}\nFix or delete them, or train without: --skip-bad-images")
    return bad


def undecodable(paths: list[str]) -> dict[str, str]:
    """The files that do not decode, each with the reason. Files that are remembered are not decoded again."""
    if len(paths) < MANY:
        return {path: why for path, why in zip(paths, decode_all(paths), strict=True) if why}
    here = str(Path.cwd())
    names = [os.path.join(here, path) for path in paths]
    states = [(state.st_size, state.st_mtime_ns) for state in map(os.stat, paths)]
    top = os.path.commonpath({name.rpartition(os.sep)[0] for name in names})

    def changed(known: dict[str, Known]) -> list[int]:
        return [k for k, name in enumerate(names) if known.get(name, ())[:2] != states[k]]

    known = _recall(top)
    if changed(known):
        with _one_process_at_a_time(top):
            known = _recall(top)  # another process may have decoded them by now
            chosen = changed(known)
            reasons = decode_all([paths[k] for k in chosen]) if chosen else []
            found = {names[k]: (*states[k], why) for k, why in zip(chosen, reasons, strict=True)}
            _remember(found)
            known |= found
    return {path: known[name][2] for path, name in zip(paths, names, strict=True) if known[name][2]}


def decode_all(paths: list[str]) -> list[str]:
    """Why each file does not decode, in order; empty for those that do."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with entry.ctrl_c_kills(), _workers(len(paths)) as pool:
        return [why for reasons in _with_progress(pool.map(_decode_chunk, chunks), len(paths)) for why in reasons]


def _workers(count: int) -> Executor:
    """Processes, since Pillow parses files under the interpreter lock; threads where forking is unsafe."""
    workers = max(1, min(-(-count // CHUNK), cpu.cores()))
    if count < MANY or not cpu.can_fork():
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, get_context("fork"), launcher.end_with, (os.getpid(),))


def _with_progress(chunks: Iterable[list[str]], count: int) -> Iterator[list[str]]:
    """The same chunks; on a terminal, a line on stderr counts the files."""
    done, shown = 0, count >= SHOWN and sys.stderr.isatty()
    for reasons in chunks:
        yield reasons
        done += len(reasons)
        if shown:
            print(f"\rdecoding new images: {done} of {count}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _decode_chunk(paths: list[str]) -> list[str]:
    return [_reason(path) for path in paths]


def _reason(path: str) -> str:
    """Why a file does not decode; empty if it does."""
    try:
        with Image.open(path) as image:
            # A JPEG is decoded at an eighth of its size: all its bytes are read, most of the arithmetic is saved.
            image.draft("RGB", (1, 1))
            image.load()
            if image.mode == "F":
                to_8_bits(image)
    except Exception as error:  # Pillow's decoders raise many kinds, struct.error and SyntaxError among them
        return str(error) or type(error).__name__
    return ""


def database() -> Path:
    """The path of the SQLite database."""
    return files.cache_folder() / "decoded-files.sqlite"


@contextmanager
def _one_process_at_a_time(top: str) -> Iterator[None]:
    """Hold the lock of a folder: of processes that start together, one decodes its files for all."""
    state = Path(top).stat()  # a folder of the same name on another machine's disk is another folder
    name = blake2b(f"{top} {state.st_ino} {state.st_mtime_ns}".encode(), digest_size=8).hexdigest()
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


def _recall(top: str) -> dict[str, Known]:
    """The remembered files below a folder."""
    query = "SELECT path, size, time, why FROM files WHERE path >= ? AND path < ?"
    try:
        with closing(sqlite3.connect(database(), timeout=10)) as connection:
            rows = connection.execute(query, (top, top + "\U0010ffff"))
            return {path: (size, time, why) for path, size, time, why in rows}
    except sqlite3.Error:
        return {}


def _remember(found: dict[str, Known]) -> None:
    if not found:
        return
    try:
        database().parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database(), timeout=10)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, time INT, why TEXT)")
            connection.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", ((name, *known) for name, known in found.items())
            )
    except (sqlite3.Error, OSError):
        return
