"""Image files that are none, in training and in predict."""

from __future__ import annotations

import io
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.harness import Case, Place, check, params, train
from PIL import Image


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of that size with next to no content; `more` are chunks behind the header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"\0" * min(1_000_000, height * (3 * width + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + content + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(kind: str, mode: str = "RGB", side: int = 60, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def lab_in_grey() -> bytes:
    """A TIFF in grey whose header says that it is L*a*b*."""
    data = bytearray(encoded("TIFF", "L"))
    tag = bytes(data).index(struct.pack("<HH", 262, 3))
    data[tag + 8 : tag + 10] = struct.pack("<H", 8)
    return bytes(data)


def floats() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40), 300, np.float32)).save(file, "TIFF")
    return file.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(ran) (w) file closefile\nshowpage\n%%EOF\n"
BROKEN_EXIF = png(40, 40, chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 3))
BROKEN = {
    "empty": (".jpg", b""),
    "of text": (".jpg", b"no image"),
    "of zeros": (".png", bytes(5000)),
    "of HTML": (".png", b"<!doctype html><p>404"),
    "of SVG": (".png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "of PostScript": (".png", EPS),
    "JPEG's first bytes": (".jpg", encoded("JPEG")[:20]),
    "JPEG cut in half": (".jpg", encoded("JPEG")[:700]),
    "PNG cut in half": (".png", encoded("PNG")[:3000]),
    "WebP cut in half": (".webp", encoded("WEBP")[:500]),
    "TIFF cut in half": (".tiff", encoded("TIFF")[:5000]),
    "BMP cut in half": (".bmp", encoded("BMP")[:5000]),
    "PPM cut in half": (".ppm", encoded("PPM")[:5000]),
    "PGM of no width": (".pgm", b"P5\n0 10\n255\n"),
    "PPM of letters": (".ppm", b"P3\nten 10\n255\n"),
    "PNG of 10 gigapixels": (".png", png(100_000, 100_000)),
    "PNG of 400 megapixels": (".png", png(20_000, 20_000)),
    "PNG of no width": (".png", png(0, 10)),
    "PNG with a wrong checksum": (".png", encoded("PNG").replace(b"IHDR", b"IHDr")),
    "TIFF of L*a*b* in grey": (".tif", lab_in_grey()),
    "TIFF of floats beyond 1": (".tif", floats()),
    "TIFF that points to itself": (".tif", b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x05\0\0\0\x08\0\0\0"),
    "Python": (".png", b"import os; os.system('touch ran')"),
    "pickled": (".jpg", b"cos\nsystem\n(S'touch ran'\ntR."),
}


def odd_file(kind: str) -> Callable[[Path], object]:
    """What is no regular file."""
    bound = socket.socket(socket.AF_UNIX)
    return {
        "pipe": os.mkfifo,
        "socket": lambda path: bound.bind(os.path.relpath(path)) if len(str(path)) < 100 else os.mkfifo(path),
        "folder": os.mkdir,
        "link to nowhere": lambda path: path.symlink_to("gone"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "endless terminal": lambda path: path.symlink_to("/dev/tty"),
        "file that may not be read": lambda path: (path.write_bytes(encoded("JPEG")), path.chmod(0)),
    }[kind]


ODD = ["pipe", "socket", "link to nowhere", "link to itself", "device", "endless terminal", "file that may not be read"]


def place_image(folder: Path, photos: Path, name: str, write: Callable[[Path], object]) -> Path:
    """A copy of the photos, one of which is another thing."""
    shutil.copytree(photos, folder / "photos")
    path = folder / "photos" / "train" / "red" / name
    write(path)
    return path


def image_cases(name: str, suffix: str, write: Callable[[Path], object]) -> list[Case]:
    def training(place: Place) -> list[str]:
        place_image(place.folder, place.photos, f"odd{suffix}", write)
        return train("--data", "photos")

    def predicting(place: Place) -> list[str]:
        place_image(place.folder, place.photos, f"odd{suffix}", write)
        return ["predict", place.run, "photos"]

    return [
        Case(f"train: image {name}", training, (f"odd{suffix}",)),
        Case(f"predict: image {name}", predicting, (f"odd{suffix}",)),
    ]


CASES = [
    case
    for name, (suffix, data) in BROKEN.items()
    for case in image_cases(name, suffix, lambda path, data=data: path.write_bytes(data))
]
CASES += [
    case._replace(code=0, says=says)
    for case, says in zip(
        image_cases("PNG with a broken EXIF block", ".png", lambda path: path.write_bytes(BROKEN_EXIF)),
        [("epoch 2/2",), ("odd.png",)],
        strict=True,
    )
]
CASES += [case for kind in ODD for case in image_cases(f"{kind}", ".jpg", lambda path, kind=kind: odd_file(kind)(path))]


@pytest.mark.parametrize("case", params(CASES, 25))
def test_an_image_that_is_none_is_named(case, place):
    check(case, place)
