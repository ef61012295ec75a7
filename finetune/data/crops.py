"""The smallest random crop in training: `--crop-scale`, whose `auto` follows the images' own size.

A crop of a small image has few pixels. On images of 8 to 64 pixels mild crops gave more accurate models on average, on
larger ones less accurate ones (docs/recipes.md, "The crop").
"""

from __future__ import annotations

from statistics import median

from finetune.config.settings import Images
from finetune.data.decode import short_side
from finetune.data.types import Split
from finetune.models.architectures import Preprocess

USUAL, MILD = 0.35, 0.7  # fractions of the image's area
ENLARGED = 2  # times its side, from which on the crop is mild
LOOKED_AT = 100  # images, at most


def typical_side(split: Split) -> float:
    """Pixels of the images' shorter side: the median over some of them, evenly spread."""
    count = len(split.labels)
    return median(short_side(split.items[k]) for k in range(0, count, -(-count // LOOKED_AT)))


def smallest(images: Images, split: Split, preprocess: Preprocess) -> float:
    """The area of the smallest random crop, as a fraction of the image."""
    if images.crop_scale != "auto":
        return images.crop_scale
    return MILD if preprocess.crop >= ENLARGED * typical_side(split) else USUAL


def describe(images: Images, split: Split, preprocess: Preprocess) -> str:
    """For the plan."""
    words = f"{100 * smallest(images, split, preprocess):g} % of an image's area or more"
    if images.crop_scale != "auto":
        return words
    sides = f"images have {typical_side(split):g} pixels at the shorter side, the input {preprocess.crop}"
    return f"{words} (--crop-scale auto): {sides}"
