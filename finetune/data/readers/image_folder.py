"""Image folders: which files belong to which class and split."""

from __future__ import annotations

from pathlib import Path

from finetune.config.settings import Images
from finetune.data import exclusions, image_files, verify
from finetune.data.types import SPLITS, ImageSet, Split, with_validation
from finetune.errors import UserError
from finetune.runtime import files

SPLIT_WORDS = (*SPLITS, "training", "valid", "validation", "eval", "testing")


def accepts(data: str) -> bool:
    """Whether `--data` exists. Asked last: whatever no other reader accepts is read as a folder."""
    return files.expanded(data).exists()


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read a folder with train/ and val/ (test/ is optional), or one folder of class folders, which is split.

    One folder is split by `types.stratified`. Raises `UserError` for every mistake in the folder, which names the file
    or class.
    """
    top = files.expanded(images.data)
    if not top.is_dir():
        raise UserError(f"--data {top} is a file; it may be a folder of images, a .csv, or an .npz with arrays.")
    listed = _files(top)
    _same_classes(top, listed)
    classes = sorted(listed["train"])
    if len(classes) < 2:
        inside = [path for path in (top / classes[0]).glob("*") if path.is_dir()]  # none of train/
        deeper = f" Did you mean --data {top / classes[0]}?" if len(inside) > 1 else ""
        raise UserError(f"{top} holds one class only ('{classes[0]}'): a classifier needs at least two.{deeper}")
    every = [path for per_class in listed.values() for paths in per_class.values() for path in paths]
    bad = verify.check(every, images.skip_bad_images, exclusions.read(images.exclude, images.data).removed)
    splits = {}
    for name, per_class in listed.items():
        folder = top / name if "val" in listed else top
        good = {cls: [path for path in per_class.get(cls, ()) if path not in bad] for cls in classes}
        empty = [cls for cls, paths in good.items() if not paths]
        if len(empty) == len(classes):
            raise UserError(f"no image of {folder} decodes: fix them or delete the folder.")
        if empty and name != "test":
            raise UserError(f"no image of {folder / empty[0]} decodes: fix them or delete the class.")
        splits[name] = Split(
            [path for cls in classes for path in good[cls]],
            [label for label, cls in enumerate(classes) for _ in good[cls]],
        )
    return ImageSet(classes, with_validation(splits, classes, images.val_fraction, seed), bad)


def _files(top: Path) -> dict[str, dict[str, list[str]]]:
    """The image files of each class of each split; one folder of class folders counts as `train`."""
    try:
        folders = sorted(child.name for child in top.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise UserError(f"{top} cannot be read: {error.strerror}.") from error
    present = [name for name in SPLITS if name in folders]
    if folders and all(name.lower() in SPLIT_WORDS for name in folders) and not set(folders) <= set(SPLITS):
        raise UserError(f"{top} holds {', '.join(folders)}: name its splits train, val and, if any, test.")
    if "train" in present and "val" not in present:
        raise UserError(
            f"{top} has train/ but no val/. Add val/ with the same classes, or let train/ be split: --data {top}/train"
        )
    if "val" in present and "train" not in present:
        raise UserError(f"{top} has val/ but no train/. Add train/ with the same classes.")
    return {name: _classes(top / name, may_lack=name == "test") for name in present} or {"train": _classes(top)}


def _classes(folder: Path, may_lack: bool = False) -> dict[str, list[str]]:
    """The sorted image files of each class folder, at any depth; with `may_lack`, some of them may have none."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.")

    found: dict[str, list[str]] = {}
    try:
        subfolders = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        refuse(error)
    for subfolder in subfolders:
        found[subfolder.name] = image_files.below(subfolder, refuse)
    if not found:
        raise UserError(f"{folder} holds no class folders: give each class a folder of its own, with its images in it.")
    empty = [name for name, paths in found.items() if not paths]
    if empty and not (may_lack and len(empty) < len(found)):
        kinds = " ".join(image_files.EXTENSIONS)
        raise UserError(f"no image in {', '.join(str(folder / name) for name in empty[:5])}. Images are: {kinds}")
    return found


def _same_classes(top: Path, listed: dict[str, dict[str, list[str]]]) -> None:
    """Raise `UserError` where val/ has other classes than train/, or test/ has one that train/ lacks.

    test/ may lack classes: nothing is chosen by it, and a small one often does. The plan names them.
    """
    train = set(listed["train"])
    for name in set(SPLITS[1:]) & set(listed):
        for has, lacks, names in (
            (name, "train", set(listed[name]) - train),
            ("train", name, train - set(listed[name])),
        ):
            if names and lacks != "test":
                shown = ", ".join(sorted(names)[:5])
                raise UserError(
                    f"{top}: {has}/ has {'classes' if len(names) > 1 else 'a class'} that {lacks}/ lacks: {shown}. "
                    f"Both need the same class folders."
                )
