"""The smallest random crop in training: `--crop-scale`, whose `auto` follows the images' own size.

A crop of a small image has few pixels. On images of 8 to 64 pixels mild crops gave more accurate models on average, on
larger ones less accurate ones (docs/defaults.md, "The crop").
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
    return _by_size(typical_side(split), preprocess) if images.crop_scale == "auto" else images.crop_scale


def describe(images: Images, split: Split, preprocess: Preprocess) -> str:
    """For the plan."""
    if images.crop_scale != "auto":
        return f"{100 * images.crop_scale:g} % of an image's area or more"
    side = typical_side(split)
    return (
        f"{100 * _by_size(side, preprocess):g} % of an image's area or more (--crop-scale auto): "
        f"images have {side:g} pixels at the shorter side, the input {preprocess.crop}"
    )


def _by_size(side: float, preprocess: Preprocess) -> float:
    return MILD if preprocess.crop >= ENLARGED * side else USUAL
