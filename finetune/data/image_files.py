"""Image files: their extensions, and deep grey as 8 bits. Nothing here imports torch."""

from __future__ import annotations

from PIL import Image

# torchvision's ImageFolder reads these and ignores the rest, .gif among them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Whether a file counts as an image: by its extension, unless it is hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


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
