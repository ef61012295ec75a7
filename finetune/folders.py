"""Image folders: which files, which classes, which split; every image checked before anything heavy starts.

Nothing here needs torch, so that a wrong path is told in a fraction of a second.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from finetune import beside, checked, entry, launcher, limits
from finetune.errors import UserError
from finetune.imagesets import ImageSet, Split, grouped, stratified

# torchvision's ImageFolder reads these and passes over the rest, .gif among them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SHOWN = 50  # batches of files to look at: fewer take no time
SPLITS = ("train", "val", "test")
SPLIT_WORDS = (*SPLITS, "training", "valid", "validation", "eval", "testing")


def read(top: Path, val_fraction: float, seed: int, skip_bad_images: bool) -> ImageSet:
    """Read `top`: a folder with train/ and val/ (test/ is optional), or one folder of class folders, which is split.

    The split of one folder is stratified: of each class `val_fraction`, rounded, but at least one image on either
    side, drawn by `seed`. Every mistake in the folder is a `UserError` that names the file or class.
    """
    if not top.is_dir():
        raise UserError(f"--data {top} is a file; it may be a folder of images, a .csv, or an .npz with arrays.")
    try:
        inside = sorted(child.name for child in top.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise UserError(f"{top} cannot be read: {error.strerror}.") from error
    present = [name for name in SPLITS if name in inside]
    if inside and all(name.lower() in SPLIT_WORDS for name in inside) and not set(inside) <= set(SPLITS):
        raise UserError(f"{top} holds {', '.join(inside)}: name its splits train, val and, if any, test.")
    if "train" in present and "val" not in present:
        raise UserError(
            f"{top} has train/ but no val/. Add val/ with the same classes, or let train/ be split: --data {top}/train"
        )
    if "val" in present and "train" not in present:
        raise UserError(f"{top} has val/ but no train/. Add train/ with the same classes.")
    listed = {name: _classes(top / name, name == "test") for name in present} or {"": _classes(top)}
    _same_classes(top, listed)
    classes = sorted(next(iter(listed.values())))
    if len(classes) < 2:
        deeper = f" Did you mean --data {top / classes[0]}?" if (top / classes[0] / "train").is_dir() else ""
        raise UserError(f"{top} holds one class only ('{classes[0]}'): a classifier needs at least two.{deeper}")
    files = [path for per_class in listed.values() for paths in per_class.values() for path in paths]
    bad = decodable(files, skip_bad_images)
    good = {
        name: {cls: [path for path in paths if path not in bad] for cls, paths in per_class.items()}
        for name, per_class in listed.items()
    }
    for name, per_class in good.items():
        for cls, paths in per_class.items():
            if not paths and name != "test":
                raise UserError(f"no image of {top / name / cls} decodes: mend them or remove the class.")
    if "" in good:
        files = [path for cls in classes for path in good[""][cls]]
        labels = [label for label, cls in enumerate(classes) for _ in good[""][cls]]
        parts = stratified(grouped(labels, classes), val_fraction, seed)
        splits = {
            name: Split([files[k] for k in positions], [labels[k] for k in positions])
            for name, positions in zip(("train", "val"), parts, strict=True)
        }
        return ImageSet(classes, splits, len(bad))
    if "test" in good and not any(good["test"].values()):
        raise UserError(f"no image of {top / 'test'} decodes: mend them or remove the folder.")
    splits = {
        name: Split(
            [path for cls in classes for path in per_class.get(cls, ())],
            [label for label, cls in enumerate(classes) for _ in per_class.get(cls, ())],
        )
        for name, per_class in good.items()
    }
    return ImageSet(classes, splits, len(bad))


def _classes(folder: Path, some: bool = False) -> dict[str, list[str]]:
    """The sorted image files of each class folder, at any depth inside it; with `some`, not every class needs one."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.")

    found: dict[str, list[str]] = {}
    try:
        subfolders = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        refuse(error)
    for subfolder in subfolders:
        paths: list[str] = []
        seen: set[str] = set()
        for place, inner, files in os.walk(subfolder, followlinks=True, onerror=refuse):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if (here := os.path.realpath(place)) in seen:  # a link back up the tree
                inner.clear()
                continue
            seen.add(here)
            paths += [
                os.path.join(place, name)
                for name in sorted(files)
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
        found[subfolder.name] = paths
    if not found:
        raise UserError(f"{folder} holds no class folders: give each class a folder of its own, with its images in it.")
    empty = [name for name, paths in found.items() if not paths]
    if empty and not (some and len(empty) < len(found)):
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"no image in {', '.join(str(folder / name) for name in empty[:5])}. Images are: {kinds}")
    return found


def _same_classes(top: Path, listed: dict[str, dict[str, list[str]]]) -> None:
    train = set(listed.get("train", ()))
    for name in SPLITS[1:]:
        if name not in listed:
            continue
        for here, there, names in (
            (name, "train", set(listed[name]) - train),
            ("train", name, train - set(listed[name])),
        ):
            if names and there != "test":  # the plan names the classes that a test split lacks
                shown = ", ".join(sorted(names)[:5])
                raise UserError(
                    f"{top}: {here}/ has {'classes' if len(names) > 1 else 'a class'} that {there}/ lacks: {shown}. "
                    f"Both need the same class folders."
                )


def decodable(paths: list[str], skip_bad_images: bool) -> dict[str, str]:
    """Decode every file; those that do not are a `UserError`, or given back with the reason if they may be skipped."""
    bad = _undecodable(paths)
    if bad and not skip_bad_images:
        shown = "\n".join(f"  {path}: {why}" for path, why in list(bad.items())[:5])
        more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
        many = "1 image does not decode" if len(bad) == 1 else f"{len(bad)} images do not decode"
        raise UserError(f"{many}:\n{shown}{more}\nMend or remove, or train without: --skip-bad-images")
    return bad


def _undecodable(paths: list[str]) -> dict[str, str]:
    """The files that do not decode, with the reason."""

    def look(chosen: list[str], alone: bool) -> list[str]:
        batches = _batched(chosen)
        with entry.at_once(), _workers(len(chosen), len(batches), alone) as pool:
            try:
                found = pool.map(_reasons, batches)
                if isinstance(pool, ProcessPoolExecutor):
                    entry.import_torch()  # this process would only wait, and all that read images need it next
                return [why for whys in _shown(found, len(batches)) for why in whys]
            except BaseException:  # an interrupted notebook does not wait for the rest
                pool.shutdown(cancel_futures=True)
                raise

    return checked.reasons(paths, look)


def _shown(found: Iterable[list[str]], batches: int) -> Iterable[list[str]]:
    """The same, under a bar where it takes a while and somebody watches."""
    if batches < SHOWN or os.environ.get("LOCAL_RANK", "0") != "0":
        return found
    from rich.console import Console
    from rich.progress import track

    console, title = Console(stderr=True), "looking at new images"  # stderr: with --json, the plan alone is on stdout
    return track(found, title, batches, console=console, transient=True, disable=not console.is_terminal)


def _workers(files: int, batches: int, alone: bool) -> Executor:
    """One for each core: processes, since Pillow opens files inside the interpreter's lock.

    For a few files, and where this process cannot be copied, they are threads.
    `alone`: the other processes of this run wait, and leave their cores to it.
    """
    count = max(1, min(batches, limits.cores() if alone else limits.share()))
    if files < checked.MANY or not beside.can_copy():
        return ThreadPoolExecutor(count)
    return ProcessPoolExecutor(count, get_context("fork"), _follow, (os.getpid(),))


def _follow(parent: int) -> None:
    """Give way to the parent, and leave it to it when to end."""
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes
    launcher.end_with(parent)


def _batched(paths: list[str], size: int = 64) -> list[list[str]]:
    """Parts of a list; a task per file would cost more than a small file's decoding."""
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def _reasons(paths: list[str]) -> list[str]:
    return [_reason(path) for path in paths]


def of_bytes(image: Image.Image) -> Image.Image:
    """Deeper grey with a byte a pixel, scaled by the range of its type; Pillow would clip it at 255 instead.

    Modes I;16 and I hold 16 bits: Pillow gives some files of 16 bits as I, and where a file has 32, few use more. F
    holds floats in [0, 1]; others are a `ValueError`.
    """
    import numpy as np  # late: few images need it

    pixels = np.asarray(image).astype(np.float64)
    if image.mode == "F" and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both
        raise ValueError(f"its values are in [{pixels.min():g}, {pixels.max():g}]; floats must lie in [0, 1]")
    scale = 255 if image.mode == "F" else 1 / 257
    return Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8))


def _reason(path: str) -> str:
    """Why a file does not decode; empty if it does."""
    try:
        with Image.open(path) as image:
            # A JPEG is decoded at an eighth of its size: all its bytes are read, most of the arithmetic is saved.
            image.draft("RGB", (1, 1))
            image.load()
            if image.mode == "F":
                of_bytes(image)
    except Exception as error:  # Pillow's decoders raise many kinds, struct.error and SyntaxError among them
        return str(error) or type(error).__name__
    return ""
