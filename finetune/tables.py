"""A CSV file of `path,label[,split]` as a set of images."""

from __future__ import annotations

import csv
from pathlib import Path

from finetune.errors import UserError
from finetune.folders import decodable
from finetune.imagesets import ImageSet, Split, grouped, stratified


def read(file: Path, fraction: float, seed: int, skip_bad_images: bool) -> ImageSet:
    """Read the rows; paths are relative to the file's folder, splits are `train`, `val` and `test`.

    Without a column `split`, or without a `val` in it, the rows to train on are split, stratified by class.
    """
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    columns = set(rows[0]) if rows else set()
    if not {"path", "label"} <= columns:
        raise UserError(f"{file} needs a first line with the columns path and label (and split, if you have splits).")
    gone = [row["path"] for row in rows if not (file.parent / row["path"]).is_file()]
    if gone:
        raise UserError(f"{file}: {len(gone)} of {len(rows)} paths point nowhere: {', '.join(gone[:5])}")
    names = {row.get("split") or "train" for row in rows}
    if names - {"train", "val", "test"}:
        raise UserError(
            f"{file}: split is train, val or test, not {', '.join(sorted(names - {'train', 'val', 'test'}))}."
        )
    bad = decodable([str(file.parent / row["path"]) for row in rows], skip_bad_images)
    rows = [row for row in rows if str(file.parent / row["path"]) not in bad]
    classes = sorted({row["label"] for row in rows if (row.get("split") or "train") == "train"})
    if len(classes) < 2:
        raise UserError(f"{file} has {len(classes)} class to train on: a classifier needs at least two.")
    unknown = sorted({row["label"] for row in rows} - set(classes))
    if unknown:
        raise UserError(f"{file}: no row to train on has the label {', '.join(map(repr, unknown[:5]))}.")
    position = {name: k for k, name in enumerate(classes)}
    splits = {}
    for name in sorted(names):
        chosen = [row for row in rows if (row.get("split") or "train") == name]
        paths = [str(file.parent / row["path"]) for row in chosen]
        splits[name] = Split(paths, [position[row["label"]] for row in chosen])
    if "val" not in splits:
        whole = splits["train"]
        parts = stratified(grouped(whole.labels, classes), fraction, seed)
        for name, positions in zip(("train", "val"), parts, strict=True):
            splits[name] = Split([whole.items[k] for k in positions], [whole.labels[k] for k in positions])
    return ImageSet(classes, splits, len(bad))
