"""Readers of labelled images, a module per kind of source.

A reader has two functions. `accepts(data)` says whether `--data` names a source of its kind. `read(images, in_channels,
seed)` returns the `ImageSet`, and raises `UserError` for every mistake in the source. No reader imports torch at its
top, so that a wrong path is reported in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune import starter
from finetune.config.settings import Images
from finetune.data import exclusions, folds
from finetune.data.readers import arrays, csv_file, image_folder, torchvision_sets
from finetune.data.types import ImageSet
from finetune.errors import UserError
from finetune.runtime import files

READERS = (csv_file, arrays, image_folder, torchvision_sets)  # the first that accepts `--data` reads it


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read and check the images that `--data` names, for a network of `in_channels` channels.

    With `--folds`, the splits are those of `--fold`, or of the first fold.

    Raises `UserError` for every mistake in them, which names the file, class or array.
    """
    images = replace(images, data=starter.path(images.data))
    reader = next((reader for reader in READERS if reader.accepts(images.data)), None)
    if reader is None:
        raise _missing(files.expanded(images.data))
    if reader is not arrays and in_channels not in (1, 3):
        raise UserError(
            f"--in-channels {in_channels}: the images of --data {images.data} are grey (1) or colour (3). Other "
            f"numbers need arrays: an .npz, or a folder of .npy."
        )
    imageset = exclusions.apply(reader.read(images, in_channels, seed), exclusions.read(images.exclude, images.data))
    return folds.split(imageset, images, seed) if images.folds else imageset


def _missing(path: Path) -> UserError:
    """The error for a path that does not exist, with the nearest existing folder's content and the sets by name."""
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    inside = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))
    has = f"{parent} holds {', '.join(inside[:8])}." if inside else f"{parent} is empty."
    return UserError(
        f"--data {path} does not exist. {has} Sets known by name: {', '.join(sorted(torchvision_sets.SETS))}."
    )
