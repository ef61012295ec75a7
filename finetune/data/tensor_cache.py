"""A content-addressed cache of tensors on disk, with LRU eviction.

An entry is one safetensors file, named by a digest of everything that it depends on, and memory-mapped for reading. Its
header holds a checksum of the values.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.data.types import Joined, Subset
from finetune.runtime import files

SUFFIX = ".safetensors"
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
HEADER = 4096  # bytes before the values: the header's length, then JSON
BLOCK = 1 << 24  # bytes per read


def folder(cache_dir: Path | None) -> Path:
    """`--cache-dir`, or its default."""
    return files.expanded(cache_dir) if cache_dir else files.cache_folder() / "features"


def key(**parts: Any) -> str:
    """The name of an entry that depends on these values alone; those that JSON has no type for enter as `str`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(items: Sequence[Any]) -> str:
    """A digest that identifies the images of a split, in their order.

    It covers, for files: path, size and time of modification; for arrays: the same of a memory-mapped file, else every
    byte; for a subset: the whole set and the positions; for joined sets: each of them; for a torchvision set: its
    description and its files.
    """
    found = blake2b(digest_size=16)
    items = getattr(items, "origin", items)  # decoded copies count as their files
    items = getattr(items, "dataset", items)  # the images of a torchvision dataset
    if isinstance(items, Joined):
        found.update("".join(map(fingerprint, items.parts)).encode())
    elif isinstance(items, Subset):
        found.update(fingerprint(items.items).encode() + np.asarray(items.positions, dtype=np.int64).tobytes())
    elif isinstance(items, np.memmap):
        found.update(f"{items.shape} {items.dtype} {items.offset} ".encode() + os.fsencode(_file(items.filename)))
    elif isinstance(items, np.ndarray):
        found.update(f"{items.shape} {items.dtype}".encode())
        found.update(np.ascontiguousarray(items).view(np.uint8))
    elif hasattr(items, "root"):
        found.update(repr(items).encode())
        for parent, _, inside in sorted(os.walk(items.root)):
            for name in sorted(inside):
                found.update(os.fsencode(_file(os.path.join(parent, name))))
    else:
        for item in items:
            found.update(os.fsencode(_file(item)))
    return found.hexdigest()


def _file(path: str | Path) -> str:
    state = Path(path).stat()
    return f"{Path(path).absolute()} {state.st_size} {state.st_mtime_ns}\n"


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """Time of the last use, in seconds since 1970."""
    about: dict[str, str]
    """Description of the content, from the header."""


def entries(folder: Path) -> list[Entry]:
    """The files of the cache, least recently used first; `about` is empty for files that cannot be read."""
    found = []
    for path in folder.glob(f"*{SUFFIX}*"):  # also unfinished files of runs that were killed
        try:
            files.check_regular(path)  # others are not the cache's
            state = path.stat()
        except OSError:  # another run deleted it, or it is a link to nowhere
            continue
        found.append(Entry(path, state.st_size, state.st_mtime, _about(path)))
    return sorted(found, key=lambda entry: entry.used)


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "np") as file:  # for torch it would map the values too
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def clear(folder: Path) -> int:
    """Delete every entry; returns the bytes freed."""
    return _delete(entries(folder))


def _delete(chosen: Iterable[Entry]) -> int:
    size = 0
    for entry in chosen:
        with suppress(FileNotFoundError):  # another run deleted it
            entry.path.unlink()
            size += entry.size
    return size


def limit(folder: Path, gigabytes: float | None) -> int:
    """Bytes that the cache may hold: `--cache-gb`, else half of its size and its disk's free space together.

    0 where the folder cannot be used.
    """
    if not usable(folder):
        return 0
    if gigabytes is not None:
        return int(gigabytes * 1e9)
    existing = folder
    while not existing.exists():
        existing = existing.parent
    return (sum(entry.size for entry in entries(folder)) + shutil.disk_usage(existing).free) // 2


def usable(folder: Path) -> bool:
    """Whether a folder can be read and written, or made: caches are an extra, without which a run goes on."""
    existing = folder
    try:
        while not existing.exists():
            if existing.is_symlink():  # to nowhere
                return False
            existing = existing.parent
    except OSError:  # one of them may not be entered, or has an impossible name
        return False
    return existing.is_dir() and os.access(existing, os.R_OK | os.W_OK | os.X_OK)


def readable(folder: Path) -> bool:
    """Whether it is a folder that can be read."""
    try:
        return folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
    except OSError:
        return False


def make_room(folder: Path, size: int, limit: int) -> None:
    """Delete the least recently used entries until `size` more bytes fit under `limit`."""
    held = entries(folder)
    while held and sum(entry.size for entry in held) + size > limit:
        _delete([held.pop(0)])


def read(path: Path) -> Tensor | None:
    """The tensor, memory-mapped; None where the entry is missing or has a damaged header."""
    try:
        files.check_regular(path)
        with safe_open(path, "pt") as file:
            return file.get_tensor("values")
    except (SafetensorError, OSError, RuntimeError):  # torch, which opens it again, says RuntimeError where it is gone
        return None


def is_whole(path: Path) -> bool:
    """Whether an entry exists and matches its checksum: then it counts as used now. A damaged one is deleted."""
    try:
        files.check_regular(path)
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            checksum = 0
            while block := file.read(BLOCK):
                checksum = zlib.crc32(block, checksum)
        intact = _about(path).get("checksum") == f"{checksum:08x}"
        if intact:
            os.utime(path)
        else:
            path.unlink(missing_ok=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, OverflowError):  # a header whose length is impossible
        with suppress(OSError):  # a folder, or one that may not be written
            path.unlink()
        return False
    return intact


class Writer:
    """Writes an entry row by row under a temporary name, and renames it when it is complete."""

    def __init__(self, path: Path, count: int | None, about: dict[str, str]) -> None:
        """`count` is the number of rows to come; None: any."""
        self.path, self.count, self.about = path, count, about
        self.temporary = files.temporary_path(path)
        self.file, self.checksum, self.rows, self.written = None, 0, 0, 0

    def append(self, rows: Tensor) -> None:
        """Add rows (k, …), contiguous on the CPU. Raises `OSError` where the disk is full."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.dtype, self.shape = rows.dtype, rows.shape[1:]
            self.file = self.temporary.open("wb")
            self.file.write(b" " * HEADER)  # written last, when the checksum is known
        values = rows.view(-1).view(torch.uint8).numpy()
        self.checksum = zlib.crc32(values, self.checksum)
        self.file.write(values)
        self.rows, self.written = self.rows + len(rows), self.written + len(values)

    def commit(self) -> None:
        """Write the header, sync, and rename, once all rows are written."""
        assert self.count in (None, self.rows), f"{self.rows} of {self.count} rows"
        shape = [self.rows, *self.shape]
        values = {"dtype": NAMES[self.dtype], "shape": shape, "data_offsets": [0, self.written]}
        about = {**self.about, "checksum": f"{self.checksum:08x}"}
        header = json.dumps({"__metadata__": about, "values": values}).encode()
        assert len(header) <= HEADER - 8, "the header is too long"
        self.file.seek(0)
        self.file.write((HEADER - 8).to_bytes(8, "little") + header.ljust(HEADER - 8))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.replace(self.path)
        self.file = None

    def abandon(self) -> None:
        """Delete what was written, unless it was committed."""
        if self.file is not None:
            with suppress(OSError):  # the disk is full
                self.file.close()
            self.temporary.unlink(missing_ok=True)
            self.file = None
