"""Files that others may read; folders that are on the disk itself, with checksums that tell whether they are whole."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SUMS = "SHA256SUMS"
UMASK = os.umask(0)  # asking for it sets it
os.umask(UMASK)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions that other files get: the library keeps it for its owner alone."""
    save_file(tensors, path, metadata)
    path.chmod(0o666 & ~UMASK)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk itself."""
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
    """Sync a folder's files and write their checksums, some of which may be known."""
    files = sorted(path for path in folder.iterdir())
    for path in files:
        sync(path)
    (folder / SUMS).write_text("".join(f"{known.get(path.name) or digest(path)}  {path.name}\n" for path in files))
    sync(folder / SUMS)
    sync(folder)


def read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file name; a `ValueError` where the list cannot be read."""
    text = (folder / SUMS).read_bytes().decode("ascii")
    sums = {name: found for found, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}
    if not sums or text != "".join(f"{found}  {name}\n" for name, found in sums.items()):
        raise ValueError("it is not as it was written")
    return sums


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: its files must be those of its list, each with its checksum."""
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
