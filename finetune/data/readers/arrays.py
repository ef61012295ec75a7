"""Arrays: x_train, y_train, x_test, y_test (and x_val, y_val) in one .npz or a folder of .npy."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from finetune.config.settings import Images
from finetune.data.types import SPLITS, ImageSet, Split, channel_axis, with_validation
from finetune.errors import UserError

CHUNK = 4096  # images whose range of values is checked together


def accepts(data: str) -> bool:
    """Whether `--data` is an .npz file or a folder with x_train.npy."""
    path = Path(data).expanduser()
    return (path.suffix == ".npz" and path.is_file()) or (path / "x_train.npy").is_file()


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read the arrays, folders memory-mapped. Without `x_val`, a stratified part of the training images validates.

    Images are uint8 or floats in [0, 1], as (N, H, W), (N, C, H, W) with one or three channels, or (N, H, W, C). Labels
    are integers or strings. Raises `UserError` for anything else, which names the array.
    """
    path = Path(images.data).expanduser()
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                held = {key: file[key] for key in file.files}
        else:
            held = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(path.glob("*.npy"))}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as arrays: {error}") from error
    if "y_train" not in held or "x_train" not in held:
        raise UserError(f"{path} holds {', '.join(held) or 'nothing'}: it needs x_train and y_train.")
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


def _check(path: Path, name: str, x: np.ndarray, y: np.ndarray, in_channels: int) -> None:
    if x.ndim not in (3, 4) or y.ndim != 1:
        raise UserError(
            f"{path}: x_{name} is {x.shape} and y_{name} {y.shape}; images are (N, H, W) or (N, H, W, C), labels (N,)."
        )
    if len(x) != len(y) or len(x) == 0:
        raise UserError(f"{path}: x_{name} has {len(x)} images and y_{name} {len(y)} labels.")
    if y.dtype.kind not in "iuSU":
        raise UserError(f"{path}: y_{name} is {y.dtype}; labels are integers or strings.")
    given = channel_axis(x.shape[1:])[0]
    if given != in_channels and {given, in_channels} != {1, 3}:
        raise UserError(f"{path}: the images of x_{name} have {given} channels: --in-channels {given}")
    if x.dtype == np.uint8:
        return
    if x.dtype.kind != "f":
        raise UserError(f"{path}: x_{name} is {x.dtype}; images are uint8, or floats in [0, 1].")
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        low, high = part.min(), part.max()
        if not (low >= 0 and high <= 1):  # NaN fails both
            raise UserError(f"{path}: x_{name} has values in [{low:g}, {high:g}]; floats must lie in [0, 1].")
