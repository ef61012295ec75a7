"""Image files: accepted extensions, opening, and 16-bit or float grey as 8 bits. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from finetune.runtime import files

# torchvision's ImageFolder reads these and ignores the rest, .gif among them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# What Pillow may find in such a file, whatever its extension. It would pass PostScript to another program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def is_image(name: str) -> bool:
    """Whether a file counts as an image: by its extension, unless it is hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def below(folder: str | Path, onerror: Callable[[OSError], None] | None = None) -> list[str]:
    """The image files in a folder, at any depth, each folder's sorted. Hidden folders and links back are left out.

    `onerror` gets the error of a folder that cannot be read, which is else left out.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, inner, names in os.walk(folder, followlinks=True, onerror=onerror):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if (real := os.path.realpath(parent)) in seen:  # a link back up the tree
            inner.clear()
            continue
        seen.add(real)
        found += [os.path.join(parent, name) for name in sorted(names) if is_image(name)]
    return found


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or floats (modes I;16, I, F) as 8 bits, scaled by the range of its type.

    Pillow would clip at 255. Mode I counts as 16 bits: Pillow opens some files of 16 bits as I, and few of 32 bits use
    more. Mode F must hold floats in [0, 1]; raises `ValueError` for others.
    """
    import numpy as np  # late: few images need it

    pixels = np.asarray(image).astype(np.float64)
    if image.mode == "F" and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both
        raise ValueError(f"its values are in [{pixels.min():g}, {pixels.max():g}]; floats must lie in [0, 1]")
    scale = 255 if image.mode == "F" else 1 / 257
    return Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8))


def open_image(item: str | bytes) -> Image.Image:
    """Open an image file, or a file's content, without decoding it. Raises `OSError` for what is none."""
    if isinstance(item, bytes):
        return Image.open(BytesIO(item), formats=FORMATS)
    files.check_regular(item)
    return Image.open(item, formats=FORMATS)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Decode an opened file: upright by its EXIF orientation, in mode `L` or `RGB`.

    A damaged EXIF block says nothing of the orientation. Raises errors of many kinds for files that do not decode.
    """
    image.load()
    with suppress(Exception):  # Pillow's parser of EXIF raises whatever its bytes lead it to
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = to_8_bits(image)
    if image.mode == "LAB" and mode == "L":  # Pillow converts it to RGB alone
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)
