"""Arrays that are none: damaged, of other types, declared larger than they are."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.harness import Case, Place, check, params, train


def arrays(shape: tuple[int, ...] = (12, 12, 3), count: int = 12) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % 2
    return {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}


def npz_case(name: str, change: Callable[[dict[str, np.ndarray]], object], *says: str) -> Case:
    def make(place: Place) -> list[str]:
        held = arrays()
        held = change(held) or held
        np.savez(place.folder / "set.npz", **held)
        return train("--data", "set.npz")

    return Case(f"npz {name}", make, says or ("set.npz",))


def bytes_case(name: str, change: Callable[[bytes], bytes], *says: str) -> Case:
    """`change` makes the file of a good one's bytes."""

    def make(place: Place) -> list[str]:
        file = io.BytesIO()
        np.savez(file, **arrays())
        (place.folder / "set.npz").write_bytes(change(file.getvalue()))
        return train("--data", "set.npz")

    return Case(f"npz {name}", make, says or ("set.npz",))


def npy_header(shape: str, kind: str = "|u1", order: str = "False") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zip_case(name: str, parts: Callable[[], dict[str, bytes]], *says: str, compressed: bool = False) -> Case:
    def make(place: Place) -> list[str]:
        how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(place.folder / "set.npz", "w", how) as file:
            for part, content in parts().items():
                file.writestr(part, content)
        return train("--data", "set.npz")

    return Case(f"npz {name}", make, says or ("set.npz",))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def parts_with(**changed: bytes) -> dict[str, bytes]:
    return {f"{name}.npy": changed.get(name, npy(array)) for name, array in arrays().items()}


def encrypted(data: bytes) -> bytes:
    """The flags of every entry say that it is encrypted."""
    found = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            found[start + offset] |= 1
            start += 4
    return bytes(found)


def flipped(data: bytes) -> bytes:
    middle = data.index(b"x_train.npy") + 400
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def bomb() -> dict[str, bytes]:
    """Three gigabytes of zeros, in three megabytes."""
    return parts_with(x_train=npy_header("(12, 16384, 16384, 1)") + bytes(300_000_000))


CASES = [
    bytes_case("cut in half", lambda data: data[: len(data) // 2]),
    bytes_case("cut at its end", lambda data: data[:-10]),
    bytes_case("that is empty", lambda data: b""),
    bytes_case("of text", lambda data: b"x_train,y_train\n"),
    bytes_case("that is an npy", lambda data: npy(arrays()["x_train"])),
    bytes_case("that is encrypted", encrypted, "set.npz", "encrypted"),
    bytes_case("with a flipped bit", flipped),
    bytes_case("of zeros", lambda data: bytes(len(data))),
    bytes_case("of random bytes", lambda data: np.random.default_rng(0).bytes(4000)),
    zip_case("without arrays", dict),
    zip_case("of text files", lambda: {"x_train.npy": b"no array", "y_train.npy": b"no array"}),
    zip_case("whose header ends", lambda: parts_with(x_train=b"\x93NUMPY\x01\x00")),
    zip_case("of another npy version", lambda: parts_with(x_train=b"\x93NUMPY\x09\x00" + bytes(200))),
    zip_case("with code in a header", lambda: parts_with(x_train=npy_header("__import__('os').system('touch ran')"))),
    zip_case("with a header of 60 KB", lambda: parts_with(x_train=npy_header("(" * 60000))),
    zip_case("that declares more than it holds", lambda: parts_with(x_train=npy_header("(12, 99, 99, 3)"))),
    zip_case("that declares 3 GB", lambda: parts_with(x_train=npy_header("(1000, 1000, 1000, 3)"))),
    zip_case(
        "that declares exabytes",
        lambda: parts_with(x_train=npy_header("(10**6, 10**6, 10**6)".replace("10**6", "1000000"))),
    ),
    zip_case("of negative size", lambda: parts_with(x_train=npy_header("(-12, 12, 12, 3)"))),
    zip_case("of an overflowing size", lambda: parts_with(x_train=npy_header(f"({2**62}, 4, 4, 3)"))),
    zip_case("that unpacks to 300 MB", bomb, compressed=True),
    zip_case("with objects", lambda: parts_with(x_train=npy(np.array([{}] * 12, dtype=object)))),
    zip_case("with pickled labels", lambda: parts_with(y_train=npy(np.array([{}] * 12, dtype=object)))),
    zip_case(
        "with paths as names",
        lambda: {"../x_train.npy": npy(arrays()["x_train"]), **parts_with()} | {"x_train.npy": b""},
    ),
    npz_case("of a scalar", lambda held: held.update(x_train=np.array(5)), "x_train"),
    npz_case("with scalar labels", lambda held: held.update(y_train=np.array(1)), "y_train"),
    npz_case(
        "without rows", lambda held: held.update(x_train=held["x_train"][:0], y_train=held["y_train"][:0]), "x_train"
    ),
    npz_case(
        "without test rows", lambda held: held.update(x_test=held["x_test"][:0], y_test=held["y_test"][:0]), "x_test"
    ),
    npz_case("of height 0", lambda held: held.update(x_train=held["x_train"][:, :0]), "x_train"),
    npz_case("of width 0", lambda held: held.update(x_train=held["x_train"][:, :, :0]), "x_train"),
    npz_case("of no channels", lambda held: held.update(x_train=held["x_train"][..., :0]), "x_train"),
    npz_case("of one axis", lambda held: held.update(x_train=held["x_train"].reshape(12, -1)), "x_train"),
    npz_case("of five axes", lambda held: held.update(x_train=held["x_train"][..., None]), "x_train"),
    npz_case("of other sizes in test", lambda held: held.update(x_test=held["x_test"][..., :2]), "x_test"),
    npz_case("of float128", lambda held: held.update(x_train=(held["x_train"] / 255).astype(np.longdouble)), "x_train"),
    npz_case("of int16", lambda held: held.update(x_train=held["x_train"].astype(np.int16)), "x_train"),
    npz_case("of booleans", lambda held: held.update(x_train=held["x_train"] > 9), "x_train"),
    npz_case("of complex numbers", lambda held: held.update(x_train=held["x_train"].astype(complex)), "x_train"),
    npz_case("of strings", lambda held: held.update(x_train=held["x_train"].astype(str)), "x_train"),
    npz_case("of dates", lambda held: held.update(x_train=held["x_train"].astype("datetime64[s]")), "x_train"),
    npz_case("of records", lambda held: held.update(x_train=held["x_train"].view("u1,u1,u1")), "x_train"),
    npz_case("of infinite floats", lambda held: held.update(x_train=np.full((12, 9, 9), np.inf)), "x_train"),
    npz_case("of NaN", lambda held: held.update(x_train=np.full((12, 9, 9), np.nan)), "x_train"),
    npz_case("of big-endian integers", lambda held: held.update(x_train=held["x_train"].astype(">u2")), "x_train"),
    npz_case("with float labels", lambda held: held.update(y_train=held["y_train"] + 0.5), "y_train"),
    npz_case("with NaN labels", lambda held: held.update(y_train=np.full(12, np.nan)), "y_train"),
    npz_case("with labels in a square", lambda held: held.update(y_train=np.zeros((12, 12), int)), "y_train"),
    npz_case("with date labels", lambda held: held.update(y_train=held["y_train"].astype("datetime64[s]")), "y_train"),
    npz_case("with a class of one image", lambda held: held.update(y_train=np.arange(12)), "one image"),
    npz_case("without training arrays", lambda held: {"x_test": held["x_test"]}, "x_train"),
]


def folder_case(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """A folder of .npy; `change` breaks it."""

    def make(place: Place) -> list[str]:
        folder = place.folder / "set"
        folder.mkdir()
        for key, array in arrays().items():
            np.save(folder / f"{key}.npy", array)
        change(folder)
        return train("--data", "set")

    return Case(f"npy {name}", make, says or ("set",))


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


CASES += [
    folder_case("cut in half", lambda folder: os.truncate(folder / "x_train.npy", 1000), "x_train"),
    folder_case("that is empty", lambda folder: os.truncate(folder / "x_train.npy", 0), "x_train"),
    folder_case("of labels cut", lambda folder: os.truncate(folder / "y_train.npy", 130), "y_train"),
    folder_case(
        "of 1 TB in a header", lambda folder: (folder / "x_train.npy").write_bytes(npy_header("(12, 300000, 300000)"))
    ),
    folder_case("without labels", lambda folder: (folder / "y_train.npy").unlink(), "y_train"),
    folder_case(
        "of objects", lambda folder: np.save(folder / "x_train.npy", np.array([{}] * 12), allow_pickle=True), "x_train"
    ),
    folder_case("whose labels are a pipe", lambda folder: _pipe(folder / "y_train.npy"), "y_train"),
    folder_case("whose images are a pipe", lambda folder: _pipe(folder / "x_train.npy"), "set"),
    folder_case(
        "whose labels are a folder",
        lambda folder: ((folder / "y_train.npy").unlink(), (folder / "y_train.npy").mkdir()),
        "y_train",
    ),
    folder_case(
        "whose labels link to themselves", lambda folder: _link(folder / "y_train.npy", "y_train.npy"), "y_train"
    ),
    folder_case("whose labels link to nowhere", lambda folder: _link(folder / "y_train.npy", "gone"), "y_train"),
    folder_case("whose labels are a device", lambda folder: _link(folder / "y_train.npy", "/dev/zero"), "y_train"),
    folder_case("that may not be read", lambda folder: (folder / "y_train.npy").chmod(0), "y_train"),
]


@pytest.mark.parametrize("case", params(CASES, 20))
def test_arrays_that_are_none_are_refused(case, place):
    check(case, place)
