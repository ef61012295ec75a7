"""Arrays: x_train, y_train, x_test, y_test (and x_val, y_val) in one .npz or a folder of .npy."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np

from finetune.config.settings import Images
from finetune.data.types import SPLITS, ImageSet, Split, channel_axis, with_validation
from finetune.errors import UserError, listed, shortened
from finetune.runtime import cpu, files

NAMES = [f"{kind}_{name}" for name in SPLITS for kind in "xy"]
# An entry of more bytes that is compressed more than so many times is no set of images but a trap for memory.
LARGE, MOST_COMPRESSED = 2**28, 100
CHUNK = 4096  # images whose range of values is checked together


def accepts(data: str) -> bool:
    """Whether `--data` is an .npz file or a folder with x_train.npy."""
    path = files.expanded(data)
    return (path.suffix == ".npz" and path.is_file()) or (path / "x_train.npy").is_file()


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read the arrays, folders memory-mapped. Without `x_val`, a stratified part of the training images validates.

    Images are uint8 or floats in [0, 1], as (N, H, W), (N, C, H, W) with one or three channels, or (N, H, W, C). Labels
    are integers or strings. Raises `UserError` for anything else, which names the array.
    """
    path = files.expanded(images.data)
    try:
        held = _npz(path) if path.suffix == ".npz" else _npy(path)
    except Exception as error:  # the parsers of archives and headers raise many kinds, SyntaxError among them
        raise UserError(f"{path} cannot be read as arrays: {shortened(str(error))}") from error
    if "y_train" not in held or "x_train" not in held:
        raise UserError(f"{path} holds {', '.join(held) or 'nothing'}: it needs x_train and y_train.")
    if held["y_train"].ndim != 1 or held["y_train"].dtype.kind not in "iuSU":
        raise UserError(f"{path}: y_train is {_described(held['y_train'])}; labels are integers or strings, (N,).")
    names = [str(name) for name in np.unique(held["y_train"])]
    if len(names) == 1:
        raise UserError(f"{path}: y_train has one class only ({names[0]}): a classifier needs at least two.")
    position = {name: k for k, name in enumerate(names)}
    splits = {}
    for name in SPLITS:
        if f"x_{name}" not in held:
            continue
        x, y = held[f"x_{name}"], held.get(f"y_{name}")
        if y is None:
            raise UserError(f"{path} has x_{name} but no y_{name}.")
        _check(path, name, x, y, in_channels)
        unknown = sorted(set(map(str, np.unique(y))) - set(names))
        if unknown:
            raise UserError(f"{path}: y_{name} has labels that y_train lacks: {', '.join(unknown[:5])}.")
        splits[name] = Split(x, [position[str(label)] for label in y])
    return ImageSet(names, with_validation(splits, names, images.val_fraction, seed))


def _npy(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder, memory-mapped."""
    found = {}
    for name in NAMES:
        path = folder / f"{name}.npy"
        if not os.path.lexists(path):
            continue
        try:
            files.check_regular(path)
            found[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise ValueError(f"{path.name}: {error}") from error
    return found


def _npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz in memory. What its headers declare is checked before anything is unpacked."""
    files.check_regular(path)
    with ZipFile(path) as file:
        entries = {info.filename: info for info in file.infolist()}
        chosen = {name: entries[f"{name}.npy"] for name in NAMES if f"{name}.npy" in entries}
        if not chosen:
            raise ValueError(f"it holds {listed(list(entries)) or 'nothing'}; it needs x_train and y_train")
        size, room = sum(info.file_size for info in chosen.values()), cpu.memory()
        if size > room:
            raise ValueError(
                f"its arrays take {size / 1e9:.3g} GB, and {room / 1e9:.3g} GB are free. Save each as x_train.npy, … "
                f"in a folder, from which they are read as needed"
            )
        for name, info in chosen.items():
            if info.file_size > LARGE and info.file_size > MOST_COMPRESSED * info.compress_size:
                raise ValueError(f"{name} is compressed {info.file_size // info.compress_size} times, as no images are")
            with file.open(info) as stream:
                _check_header(name, stream, info.file_size)
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in chosen}


def _check_header(name: str, stream: IO[bytes], size: int) -> None:
    """Raise `ValueError` where the header of a .npy of `size` bytes declares more or less than that."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} is of version {version} of the format")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - stream.tell():
        raise ValueError(f"{name} declares the shape {shape} of {dtype}, and its content is of another size")


def _check(path: Path, name: str, x: np.ndarray, y: np.ndarray, in_channels: int) -> None:
    if x.ndim not in (3, 4) or y.ndim != 1:
        raise UserError(
            f"{path}: x_{name} is {x.shape} and y_{name} {y.shape}; images are (N, H, W) or (N, H, W, C), labels (N,)."
        )
    if min(x.shape[1:]) == 0:
        raise UserError(f"{path}: the images of x_{name} are {x.shape[1:]}: they have no pixels.")
    if len(x) != len(y) or len(x) == 0:
        raise UserError(f"{path}: x_{name} has {len(x)} images and y_{name} {len(y)} labels.")
    if y.dtype.kind not in "iuSU":
        raise UserError(f"{path}: y_{name} is {_described(y)}; labels are integers or strings, (N,).")
    given = channel_axis(x.shape[1:])[0]
    if given != in_channels and {given, in_channels} != {1, 3}:
        raise UserError(f"{path}: the images of x_{name} have {given} channels: --in-channels {given}")
    if x.dtype == np.uint8:
        return
    if x.dtype not in (np.float16, np.float32, np.float64):  # of this machine's byte order
        raise UserError(f"{path}: x_{name} is {x.dtype}; images are uint8, or floats in [0, 1] of 16 to 64 bits.")
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        low, high = part.min(), part.max()
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise UserError(f"{path}: x_{name} has values in [{low:g}, {high:g}]; floats must lie in [0, 1].")


def _described(array: np.ndarray) -> str:
    return f"{array.shape} of {array.dtype}"
