"""The images of an earlier run, read again: they must still be those that it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config.settings import Images, Recipe
from finetune.data import readers
from finetune.data.types import ImageSet
from finetune.errors import UserError


def moved(recipe: Recipe, data: str | None) -> Recipe:
    """The recipe with its images at `data`, where that is given."""
    return replace(recipe, images=replace(recipe.images, data=data)) if data else recipe


def read(recipe: Recipe, config: dict[str, Any], in_channels: int) -> ImageSet:
    """The images of the run with these settings and this config.json.

    Raises `UserError` where they cannot be read, and where their names, number, sizes or classes differ.
    """
    found = read_unchecked(recipe.images, in_channels, recipe.run.seed)
    check(found, config, recipe.images.data)
    return found


def read_unchecked(images: Images, in_channels: int, seed: int) -> ImageSet:
    """The images, which may have changed. Raises `UserError` where they cannot be read."""
    if Path(images.data).is_absolute() and not Path(images.data).exists():
        raise UserError(f"the run's images are gone: there is no {images.data}.")
    return readers.read(images, in_channels, seed)


def check(images: ImageSet, config: dict[str, Any], data: str) -> None:
    """Raise `UserError` where images are others than those of the run with this config.json."""
    now = {"images": images.fingerprint(), "image_sizes": images.sizes()}
    if any(config.get(name, value) != value for name, value in now.items()):
        raise UserError(f"the images of {data} have changed after the training: their names, number, sizes or classes.")
