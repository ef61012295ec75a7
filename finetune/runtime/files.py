"""Files from anywhere, read within limits; atomic files and folders, checksums, the user's cache folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system without locks, such as some of NFS
LARGEST_SUMS = 2**20  # bytes of SHA256SUMS: a checkpoint has a handful of files
LARGEST_TEXT = 64 * 2**20  # bytes of a JSON file; a million classes fit
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


# ---- reading ---------------------------------------------------------------------------------------------------------
def expanded(path: str | Path) -> Path:
    """A path that a user gave, with `~` expanded. Raises `UserError` where there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no home folder for it. Write the path in full.") from error


def check_regular(path: str | Path) -> None:
    """Raise `OSError` for what is no regular file: to read from a pipe, a socket or a device may never end."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe, socket or device")


def read_bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `OSError` for any other."""
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return content


def read_json(path: Path, most: int = LARGEST_TEXT) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` where there is none."""
    return parse_json(read_text(path, most), path)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The text of a file in UTF-8. Raises `UserError` for a file that is none, or is larger than `most` bytes."""
    try:
        return read_bytes(path, most).decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Copy the file again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is no text in UTF-8 ({error}). Copy the file again.") from error


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The JSON object that a text of the file `path` holds. Raises `UserError` where there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error}). Copy the file again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. Copy the file again.")
    return value


def read_csv(path: Path, needed: Sequence[str], name: str, errors: str = "strict") -> list[dict[str, str]]:
    """The rows of a CSV file under its header, each with a cell for every column; empty lines are skipped.

    `errors` is for bytes that are not UTF-8, as `open` takes it. Raises `UserError`, which begins with `name`, where
    the file cannot be read, a needed column is missing, or a row is longer or shorter than the header.
    """
    try:
        check_regular(path)
        with path.open(newline="", encoding="utf-8-sig", errors=errors) as lines:
            table = csv.reader(lines, strict=True)
            columns = next(table, [])
            if not set(needed) <= set(columns) or len(set(columns)) < len(columns):
                found = f"has {', '.join(columns)}" if columns else "is empty"
                hint = " Separate the columns by commas." if len(columns) == 1 and ";" in columns[0] else ""
                raise UserError(
                    f"{name} needs a first line with the columns {' and '.join(needed)}, each once; it {found}.{hint}"
                )
            rows = []
            for cells in table:
                if cells and len(cells) != len(columns):
                    raise UserError(
                        f"{name}, line {table.line_num}: {len(cells)} cells in the row, {len(columns)} in the header. "
                        f"Quote a cell that has a comma in it."
                    )
                if cells:
                    rows.append(dict(zip(columns, cells, strict=True)))
            return rows
    except FileNotFoundError as error:
        raise UserError(f"{name}: there is no such file.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name} cannot be read as CSV in UTF-8: {error}") from error


# ---- writing ---------------------------------------------------------------------------------------------------------
@contextmanager
def atomic(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` for a new file or folder, renamed to `path` when the block has ended.

    An earlier `path` is replaced; a folder by two renames, between which there is none. Where the block raises, the
    temporary is deleted and `path` stays as it was.
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
        temporary.write_text(text, "utf-8", "backslashreplace")  # names of files may be no Unicode


def remove(path: Path) -> None:
    """Delete a file, link or folder with all that it holds. What cannot be deleted stays, as a file open on NFS."""
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


# ---- checksums -------------------------------------------------------------------------------------------------------
def digest(path: Path) -> str:
    """A regular file's SHA-256."""
    check_regular(path)
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
    text = read_bytes(folder / SUMS, LARGEST_SUMS).decode("ascii")
    sums = {name: found for found, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}
    if not sums or text != "".join(f"{found}  {name}\n" for name, found in sums.items()):
        raise ValueError("it is not in the form in which it was written")
    return sums


def damage(folder: Path) -> str | None:
    """What is wrong with a folder: its files must be those of its `SHA256SUMS`, each with its checksum. None: whole."""
    if folder.is_symlink():  # what is behind it is not the run's to delete, and its frozen tensors cannot be linked
        return "it is a link"
    try:
        sums = read_sums(folder)
        there = {path.name for path in folder.iterdir()} - {SUMS}
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({error})"
    if missing := sums.keys() - there:
        return f"{min(missing)} is missing"
    if extra := there - sums.keys():
        return f"{min(extra)} is not in {SUMS}"
    for name, expected in sums.items():
        try:
            found = digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} does not match its checksum"
    return None
