"""Atomic files and folders, checksums, the user's cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system without locks, such as some of NFS
UMASK = os.umask(0)  # reading it sets it
os.umask(UMASK)


def cache_folder() -> Path:
    """The folder for what can be computed or downloaded again; it may not exist yet, nor be writable."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "finetune"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home folder, as in containers: taken as /, which is not writable
        home = Path("/")
    return home / ".cache" / "finetune"


@contextmanager
def atomic(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` for a new file or folder, renamed to `path` when the block has ended.

    An earlier `path` is replaced. Where the block raises, the temporary is deleted and `path` stays as it was.
    `shared` is for paths that several processes may write at the same time.
    """
    temporary = temporary_path(path) if shared else path.with_name(f".{path.name}.new")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir():  # a folder that is not empty cannot be renamed over
            old = path.with_name(f".{path.name}.old")
            remove(old)
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            remove(old)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock against other processes; do without one where its file cannot be written or locked."""
    from filelock import FileLock

    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process on any machine uses."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def remove(path: Path) -> None:
    """Delete a file or folder; what cannot be deleted, such as a file that is open on NFS, stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of other files: the library makes it readable by its owner only."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)
    path.chmod(0o666 & ~UMASK)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk (fsync)."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def digest(path: Path) -> str:
    """A file's SHA-256."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def write_sums(folder: Path, known: dict[str, str]) -> None:
    """Sync a folder's files and write `SHA256SUMS`; the checksums of some files may be known."""
    paths = sorted(folder.iterdir())
    for path in paths:
        sync(path)
    (folder / SUMS).write_text("".join(f"{known.get(path.name) or digest(path)}  {path.name}\n" for path in paths))
    sync(folder / SUMS)
    sync(folder)


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file name. Raises `ValueError` where the list is damaged."""
    text = (folder / SUMS).read_bytes().decode("ascii")
    sums = {name: found for found, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}
    if not sums or text != "".join(f"{found}  {name}\n" for name, found in sums.items()):
        raise ValueError("it is not in the form in which it was written")
    return sums


def damage(folder: Path) -> str | None:
    """What is wrong with a folder: its files must be those of its `SHA256SUMS`, each with its checksum. None: whole."""
    try:
        sums = read_sums(folder)
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({error})"
    there = {path.name for path in folder.iterdir()} - {SUMS}
    if missing := sums.keys() - there:
        return f"{min(missing)} is missing"
    if extra := there - sums.keys():
        return f"{min(extra)} is not in {SUMS}"
    for name, expected in sums.items():
        if digest(folder / name) != expected:
            return f"{name} does not match its checksum"
    return None
