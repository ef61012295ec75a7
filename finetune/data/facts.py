"""Facts of an image from one decoding: size, format, brightness, sharpness, perceptual hashes.

Nothing here imports torch.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from finetune.data.image_files import open_image, to_mode
from finetune.runtime import files

SIDE = 128  # pixels of the longer side of the grey copy that brightness and sharpness are measured on
TURNS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
TURN_NAMES = ("", "mirrored", "upside down, mirrored", "turned by 180°", "turned, mirrored", "turned by 90°",
              "turned by 270°", "turned, mirrored")  # fmt: skip
VERSION = 3  # of FACTS: what other versions remembered is measured again
FACTS = np.dtype(
    [
        ("format", "S8"),  # by its content, as Pillow names it
        ("mode", "S8"),  # Pillow's, such as RGB
        ("width", "u4"),  # pixels, as stored
        ("height", "u4"),
        ("orientation", "u1"),  # of EXIF; 1 is upright
        ("profile", "?"),  # whether there is a colour profile
        ("frames", "u4"),
        ("darkest", "f4"),  # 5th percentile of grey, 0 to 255
        ("lightest", "f4"),  # 95th percentile
        ("contrast", "f4"),  # standard deviation of grey
        ("sharpness", "f4"),  # 99th percentile of the absolute Laplacian, divided by the contrast
        ("digest", "u8", 2),  # of the file's content, or of the pixels of an array
        ("hashes", "u8", len(TURNS)),  # perceptual hashes of the image and of its mirrored and turned copies
        ("thumbnail", "u1", (16, 16)),  # grey
    ]
)


def of_file(path: str) -> np.ndarray:
    """The facts of an image file, a scalar of FACTS. Raises an exception of any kind where it does not decode."""
    files.check_regular(path)
    content = Path(path).read_bytes()
    with open_image(content) as image:
        found = np.zeros((), FACTS)
        found["format"], found["mode"] = (image.format or "").encode(), image.mode.encode()
        found["width"], found["height"] = image.size
        found["orientation"] = _orientation(image)
        found["profile"] = "icc_profile" in image.info
        found["frames"] = getattr(image, "n_frames", 1)
        # A JPEG is decoded in grey at a fraction of its size: all its bytes are read, most of the arithmetic is saved.
        image.draft("L", (SIDE, SIDE))
        return _measured(found, image, content)


def of_image(image: Image.Image) -> np.ndarray:
    """The facts of an image in memory, a scalar of FACTS."""
    found = np.zeros((), FACTS)
    found["mode"], found["orientation"], found["frames"] = image.mode.encode(), 1, 1
    found["width"], found["height"] = image.size
    return _measured(found, image, image.tobytes() + repr((image.size, image.mode)).encode())


def _measured(found: np.ndarray, image: Image.Image, content: bytes) -> np.ndarray:
    """Fill in what is measured on the pixels, and the digest."""
    import imagehash  # late: known files need it not

    grey = to_mode(image, "L")  # as training decodes it, upright
    small = grey.resize((32, 32), Image.Resampling.LANCZOS)
    for k, turn in enumerate(TURNS):
        bits = imagehash.phash(small if turn is None else small.transpose(turn)).hash
        found["hashes"][k] = int.from_bytes(np.packbits(bits).tobytes(), "big")
    found["thumbnail"] = np.asarray(small.resize((16, 16), Image.Resampling.BOX))
    found["digest"] = np.frombuffer(blake2b(content, digest_size=16).digest(), "u8")
    grey = grey.copy()  # it may be the given image
    grey.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(grey, dtype=np.float32)  # (H, W)
    found["darkest"], found["lightest"] = np.percentile(pixels, (5, 95))
    found["contrast"] = pixels.std()
    found["sharpness"] = _sharpness(pixels)
    return found


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1)) % 256
    except Exception:  # broken EXIF blocks raise many kinds; decoding says whether it matters
        return 1


def _sharpness(pixels: np.ndarray) -> float:
    """99th percentile of the absolute Laplacian, divided by the standard deviation; 0 for a uniform image.

    Source of the measure: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy", who take the
    Laplacian's variance; a percentile does not hang on how much of the image is background.
    """
    if min(pixels.shape) < 3 or not pixels.std():
        return 0.0
    inner = pixels[1:-1, 1:-1]
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float(np.percentile(np.abs(around - 4 * inner), 99) / pixels.std())
