"""A CSV file with the columns path, label and, optionally, split."""

from __future__ import annotations

from pathlib import Path

from finetune.config.settings import Images
from finetune.data import exclusions, verify
from finetune.data.types import SPLITS, ImageSet, Split, with_validation
from finetune.errors import UserError, listed, shortened
from finetune.runtime import files


def accepts(data: str) -> bool:
    """Whether `--data` is a .csv file."""
    path = files.expanded(data)
    return path.suffix == ".csv" and path.is_file()


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read the rows; paths are relative to the file's folder, splits are `train`, `val` and `test`.

    Without the column `split`, or without `val` in it, the training rows are split (`types.stratified`). Raises
    `UserError` for missing columns, values or files, unknown splits or labels, and images that do not decode.
    """
    file = files.expanded(images.data)
    rows = files.read_csv(file, ("path", "label"), str(file))
    if not rows:
        raise UserError(f"{file} has no rows: each image needs one, with its path and label.")
    if partial := sum(not (row["path"] and row["label"]) for row in rows):
        raise UserError(f"{file}: {partial} of {len(rows)} rows have no path or no label.")
    without = sum(not row.get("split") for row in rows)
    if 0 < without < len(rows):
        raise UserError(f"{file}: {without} of {len(rows)} rows have no split. Give each row one, or none of them.")
    gone = [shortened(row["path"]) for row in rows if not _is_there(file.parent / row["path"])]
    if gone:
        raise UserError(f"{file}: {len(gone)} of {len(rows)} paths point nowhere: {listed(gone)}")
    names = {row.get("split") or "train" for row in rows}
    if unknown := sorted(names - set(SPLITS)):
        raise UserError(f"{file}: split is train, val or test, not {', '.join(unknown)}.")
    excluded = exclusions.read(images.exclude, images.data).removed
    bad = verify.check([str(file.parent / row["path"]) for row in rows], images.skip_bad_images, excluded)
    rows = [row for row in rows if str(file.parent / row["path"]) not in bad]
    classes = sorted({row["label"] for row in rows if (row.get("split") or "train") == "train"})
    if len(classes) < 2:
        raise UserError(f"{file}: the training rows have fewer than two classes: a classifier needs at least two.")
    unknown = sorted({row["label"] for row in rows} - set(classes))
    if unknown:
        raise UserError(f"{file}: no training row has the label {', '.join(map(repr, unknown[:5]))}.")
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {name: Split([], []) for name in sorted(names)}
    for row in rows:
        split = splits[row.get("split") or "train"]
        split.items.append(str(file.parent / row["path"]))
        split.labels.append(label_of[row["label"]])
    return ImageSet(classes, with_validation(splits, classes, images.val_fraction, seed), bad)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name of more than 255 bytes, a folder that may not be entered
        return False
