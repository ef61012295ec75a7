"""Decode an image that a stranger sent: type and size are checked in its header first."""

from __future__ import annotations

import warnings
from io import BytesIO

from fastapi import HTTPException
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from finetune.data.decode import load
from finetune.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
NAMES = "JPEG, PNG, WebP, BMP, TIFF or PPM"
MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000  # pixels
MAX_SCANS = 20  # of a progressive JPEG of MAX_PIXELS; each decodes the whole image again

Image.init()  # registers every format: `Image.open` looks up those it is given
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower


def decode(data: bytes, channels: int) -> Tensor:
    """An image file's content as (channels, H, W), as `decode.load` has it.

    Raises `HTTPException`: 415 for another type, 413 for too many pixels, 422 for a damaged image.
    """
    _check(data)
    try:
        return load(data, channels)
    except UserError as error:
        reason = str(error).partition(" does not decode: ")[2]
        raise HTTPException(422, f"the image is damaged: {reason[:200]}") from None


def _check(data: bytes) -> None:
    """Raise `HTTPException` for what is not worth decoding."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:  # reads the header alone
            (width, height), kind = image.size, image.format
            animated = kind in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1
    except UnidentifiedImageError:
        raise HTTPException(415, f"this is no image that can be read. Send {NAMES}.") from None
    except Image.DecompressionBombError:
        raise _too_many_pixels() from None
    except Exception:  # Pillow's parsers raise errors of many types
        raise HTTPException(422, "the image is damaged: its header cannot be read.") from None
    if animated:
        raise HTTPException(415, "the image is animated. Send a single picture.")
    # MPO: a phone's JPEG with a second picture behind the first.
    pixels, scans = width * height, data.count(b"\xff\xda") if kind in ("JPEG", "MPO") else 1
    if max(width, height) > MAX_SIDE or pixels > MAX_PIXELS or pixels * scans > MAX_PIXELS * MAX_SCANS:
        raise _too_many_pixels()


def _too_many_pixels() -> HTTPException:
    return HTTPException(413, f"the image has more than {MAX_PIXELS // 10**6} megapixels. Send a smaller one.")
