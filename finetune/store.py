"""Tensors on disk that were dear to compute: named by all that they depend on, whole or not there, bounded in size.

An entry is one safetensors file, which is memory-mapped when it is read. Its header holds a checksum of the values.
"""

from __future__ import annotations

import json
import os
import platform
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

SUFFIX = ".safetensors"
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
HEADER = 4096  # bytes before the values: their length, then JSON
PIECE = 1 << 24  # bytes read together


def default_folder() -> Path:
    """Where entries are kept if nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune" / "features"


def key(**parts: Any) -> str:
    """A name for what depends on these parts alone: JSON's types, or what `str` says of others."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(items: Sequence[Any]) -> str:
    """What identifies the images of a split, in their order.

    For files: path, size and time of modification; for arrays: the same of a memory-mapped file, else every byte; for
    part of a larger set: that set and the positions; for a torchvision set: its description and its files.
    """
    found = blake2b(digest_size=16)
    items = getattr(items, "origin", items)  # what decoded copies were made of
    whole = getattr(items, "array", getattr(items, "dataset", None))
    if whole is not None and hasattr(items, "positions"):
        found.update(fingerprint(whole).encode() + np.asarray(items.positions, dtype=np.int64).tobytes())
    elif isinstance(items, np.memmap):
        found.update(f"{items.shape} {items.dtype} {items.offset} {_file(items.filename)}".encode())
    elif isinstance(items, np.ndarray):
        found.update(f"{items.shape} {items.dtype}".encode())
        found.update(np.ascontiguousarray(items).view(np.uint8))
    elif hasattr(items, "root"):
        found.update(repr(items).encode())
        for place, _, files in sorted(os.walk(items.root)):
            for name in sorted(files):
                found.update(_file(os.path.join(place, name)).encode())
    else:
        for item in items:
            found.update(_file(item).encode())
    return found.hexdigest()


def _file(path: str | Path) -> str:
    known = Path(path).stat()
    return f"{Path(path).absolute()} {known.st_size} {known.st_mtime_ns}\n"


@dataclass(frozen=True)
class Entry:
    """One file of the store, as its header describes it."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """When it was last used, in seconds since 1970."""
    about: dict[str, str]
    """What it holds, in words."""


def entries(folder: Path) -> list[Entry]:
    """What is in the store, the least recently used first; files that cannot be read have nothing `about` them."""
    found = []
    for path in folder.glob(f"*{SUFFIX}*"):  # unfinished ones of runs that were killed too
        try:
            known = path.stat()
        except FileNotFoundError:  # another run was quicker
            continue
        found.append(Entry(path, known.st_size, known.st_mtime, _about(path)))
    return sorted(found, key=lambda entry: entry.used)


def _about(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def clear(folder: Path) -> int:
    """Remove every entry; how many bytes that were."""
    return _remove(entries(folder))


def _remove(chosen: Iterable[Entry]) -> int:
    size = 0
    for entry in chosen:
        entry.path.unlink(missing_ok=True)
        size += entry.size
    return size


def limit(folder: Path, gigabytes: float | None) -> int:
    """Bytes that the store may take: what is said, else half of what it has and of what is free beside it."""
    if gigabytes is not None:
        return int(gigabytes * 1e9)
    there = folder
    while not there.exists():
        there = there.parent
    return (sum(entry.size for entry in entries(folder)) + shutil.disk_usage(there).free) // 2


def make_room(folder: Path, size: int, most: int) -> None:
    """Remove the least recently used entries until `size` more bytes fit under `most`."""
    held = entries(folder)
    while held and sum(entry.size for entry in held) + size > most:
        _remove([held.pop(0)])


def read(path: Path) -> Tensor | None:
    """The tensor, memory-mapped; None where there is no entry or it is damaged."""
    # Not copied, since it may be larger than the memory. It is safe: no entry is ever overwritten in place, its values
    # begin at a page (`HEADER`), and what is computed with are the rows of a batch, which indexing copies.
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("values")
    except (SafetensorError, OSError):
        return None


def whole(path: Path) -> bool:
    """Whether an entry is there and undamaged; it then counts as used now. A damaged one is removed."""
    try:
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            checksum = 0
            while piece := file.read(PIECE):
                checksum = zlib.crc32(piece, checksum)
        right = _about(path).get("checksum") == f"{checksum:08x}"
        if right:
            os.utime(path)
        else:
            path.unlink(missing_ok=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, OverflowError):  # a header that points nowhere
        path.unlink(missing_ok=True)
        return False
    return right


class Writer:
    """Writes an entry row by row under a name of its own, and gives it its real name when it is whole."""

    def __init__(self, path: Path, count: int | None, about: dict[str, str]) -> None:
        """`count` rows will come, or as many as do."""
        self.path, self.count, self.about = path, count, about
        self.fresh = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}")
        self.file, self.checksum, self.rows, self.written = None, 0, 0, 0

    def append(self, rows: Tensor) -> None:
        """Add rows (k, …), contiguous on the CPU. Raises `OSError` where the disk is full."""
        if self.file is None:
            self.kind, self.shape = rows.dtype, rows.shape[1:]
            self.file = self.fresh.open("wb")
            self.file.write(b" " * HEADER)  # comes last, when the checksum is known
        values = rows.view(-1).view(torch.uint8).numpy()
        self.checksum = zlib.crc32(values, self.checksum)
        self.file.write(values)
        self.rows, self.written = self.rows + len(rows), self.written + len(values)

    def commit(self) -> None:
        """All rows are there: write the header, sync, and rename."""
        assert self.count in (None, self.rows), f"{self.rows} of {self.count} rows"
        shape = [self.rows, *self.shape]
        described = {"dtype": NAMES[self.kind], "shape": shape, "data_offsets": [0, self.written]}
        about = {**self.about, "checksum": f"{self.checksum:08x}"}
        header = json.dumps({"__metadata__": about, "values": described}).encode()
        assert len(header) <= HEADER - 8, "a header without end"
        self.file.seek(0)
        self.file.write((HEADER - 8).to_bytes(8, "little") + header.ljust(HEADER - 8))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.fresh.replace(self.path)

    def abandon(self) -> None:
        """Remove what was written."""
        if self.file is not None:
            with suppress(OSError):  # what is still to be written fails again where the disk is full
                self.file.close()
            self.fresh.unlink(missing_ok=True)
