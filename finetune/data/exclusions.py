"""The list of --exclude: images to leave out, or to train under another label. Files are never touched.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data.types import ImageSet, Split
from finetune.errors import UserError, listed
from finetune.runtime import files

NO_FILE = re.compile(r"(train|val|test)/#\d+")  # split and position of an image that is no file
COLUMNS = ("path", "action", "label", "new_label", "reason")


@dataclass(frozen=True)
class Exclusions:
    """What a list says; images by absolute path, or by split and position where they are no files."""

    removed: frozenset[str] = frozenset()
    relabelled: tuple[tuple[str, str], ...] = ()
    """Image and new class."""
    file: Path = Path()

    def __len__(self) -> int:
        return len(self.removed) + len(self.relabelled)


def root(data: str) -> Path:
    """The folder that paths of a list are relative to: that of the images, or that of the CSV file."""
    path = files.expanded(data)
    return path if path.is_dir() else path.parent


def absolute(path: str | Path) -> str:
    """The absolute path, without `..`; links stay as they are."""
    return os.path.abspath(path)  # noqa: PTH100


def read(file: Path | None, data: str) -> Exclusions:
    """Read a list for `--data`. Without a file it is empty. Raises `UserError` for a list that cannot be read."""
    if file is None:
        return Exclusions()
    file, top = files.expanded(file), root(data)
    # Names of files may be other bytes than UTF-8, which Python keeps as surrogates.
    rows = files.read_csv(file, ("path", "action"), f"--exclude {file}", errors="surrogateescape")
    removed, relabelled = set(), {}
    for number, row in enumerate(rows, 2):
        path, action, label = (row.get(name) or "" for name in ("path", "action", "new_label"))
        if not path or action not in ("remove", "relabel") or (action == "relabel" and not label):
            raise UserError(
                f"--exclude {file}, line {number}: needs a path and the action remove, or relabel with a new_label. "
                f"python -m finetune check DATA --fix-list FILE writes such a list."
            )
        name = path if NO_FILE.fullmatch(path) else absolute(top / path)
        if action == "remove":
            removed.add(name)
        else:
            relabelled[name] = label
    return Exclusions(frozenset(removed), tuple((k, v) for k, v in relabelled.items() if k not in removed), file)


def apply(imageset: ImageSet, exclusions: Exclusions) -> ImageSet:
    """The set without the removed images, and with the new labels.

    The splits are those of the whole set: an image does not move because another one is left out. Raises `UserError`
    for a class that there is not, a list that fits no image, and a class that loses all training images.
    """
    if not len(exclusions):
        return imageset
    label_of, relabelled = {name: k for k, name in enumerate(imageset.classes)}, dict(exclusions.relabelled)
    if unknown := sorted(set(relabelled.values()) - label_of.keys()):
        raise UserError(f"--exclude {exclusions.file}: there is no class {listed(list(map(repr, unknown)))}.")
    splits, removed, changed = {}, 0, 0
    for split, images in imageset.splits.items():
        names = keys(split, images)
        labels = [label_of[relabelled.get(name, imageset.classes[label])]
                  for name, label in zip(names, images.labels, strict=True)]  # fmt: skip
        changed += sum(new != old for new, old in zip(labels, images.labels, strict=True))
        kept = [k for k, name in enumerate(names) if name not in exclusions.removed]
        removed += len(names) - len(kept)
        splits[split] = replace(images, labels=labels).subset(kept)
    removed += len(exclusions.removed & {absolute(path) for path in imageset.bad})
    if not removed + changed:
        raise UserError(f"--exclude {exclusions.file} names no image of the data: is it a list of other data?")
    found = replace(imageset, splits=splits, excluded=removed, relabelled=changed)
    for split in ("train", "val"):
        if empty := found.lacking(split):
            raise UserError(f"--exclude {exclusions.file} leaves no image of {listed(empty)} in {split}.")
    return found


def keys(split: str, images: Split) -> list[str]:
    """What a list calls the images of a split: absolute paths; of others split and position."""
    if images.are_files:
        return [absolute(path) for path in images.items]
    return [f"{split}/{name}" for name in images.names()]
