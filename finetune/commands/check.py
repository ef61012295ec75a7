"""`check`: the audit of a data set."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from finetune.commands import new_file
from finetune.config.command_line import parse
from finetune.config.settings import Images, NonNegativeInt, ValFraction
from finetune.errors import UserError
from finetune.runtime import files

if TYPE_CHECKING:
    from finetune.audit.label_errors import LabelError
    from finetune.data.types import ImageSet


@dataclass(frozen=True)
class Options:
    """Look for what may spoil a model or its score: copies, leaks between splits, bad files, dull or blurry images.

    Of a run, or a cross-validation, its data, and likely label errors by its held-out predictions. Files are only read,
    and remembered until they change.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA|RUN")]
    """What train.py takes as --data, or the folder of a run or of a cross-validation."""
    json: bool = False
    """Print JSON."""
    html: Path | None = None
    """Also write a page with thumbnails: a new .html file."""
    fix_list: Path | None = None
    """Also write the proposed removals and relabels: a new .csv file, to be edited and given to train.py --exclude."""
    exclude: Path | None = None
    """Look at what such a list leaves. None: that of the run, if any."""
    data_root: Path = field(default_factory=lambda: Images().data_root)
    """Folder of the datasets that are given by name."""
    val_fraction: ValFraction = Images.val_fraction
    """Fraction of each class held out for validation, where the data has no validation split."""
    seed: NonNegativeInt = 0
    """Seed of that split."""


def main(arguments: list[str]) -> int:
    """Print what was found, and write the files that were asked for."""
    options = parse(Options, "python -m finetune check", arguments)
    html, fix_list = new_file("--html", options.html), new_file("--fix-list", options.fix_list)

    from finetune.audit import collection, findings, label_errors, text, tree
    from finetune.audit import fix_list as fixes
    from finetune.data import exclusions

    folder = files.expanded(options.data)
    errors: list[LabelError] = []
    if label_errors.is_run(folder):
        images, seed, imageset, errors = of_run(folder, options)
    else:
        images, seed = settings(options), options.seed
        imageset = read(images, seed)
    top = exclusions.root(images.data) if files.expanded(images.data).exists() else None
    data = collection.collect(imageset, top)
    if fix_list and images.exclude and not data.are_files:
        raise UserError("--fix-list: images that are no files are named by their number, which --exclude changes.")
    found = findings.find(data)
    if data.are_files and files.expanded(images.data).is_dir():
        found += [findings.Finding("leftover", f"{path} {what}", path=path) for path, what in tree.leftovers(top)]
    located = label_errors.locate(errors, imageset)
    for k, error in located.items():
        found.append(findings.Finding("label", f"{data.describe(k)}: {error.reason}", (k,)))
    found = findings.ordered(found)
    source = images.data if not errors else f"{images.data}, with the predictions of {folder}"
    summary = findings.summary(data)
    if options.json:
        print(json.dumps(text.as_json(source, data.classes, data.counts(), found, data.names), ensure_ascii=False))
    else:
        print(text.show(source, summary, found))
    if html:
        from finetune.reporting import audit_page

        files.write_text(html, audit_page.render(source, data, summary, found))
        print(f"Page      {html}", file=sys.stderr)
    if fix_list:
        rows = fixes.propose(data, found, located)
        before = fixes.read(images.exclude, rows) if images.exclude else []
        fixes.write(fix_list, [*before, *rows])
        lines = f"{len(rows)} lines" + (f" and the {len(before)} of {images.exclude}" if before else "")
        print(f"Fix list  {fix_list} ({lines}). Edit it, and train with --exclude", file=sys.stderr)
    return 0


def settings(options: Options) -> Images:
    """The settings of the images that the options name."""
    return Images(
        data=options.data, data_root=options.data_root, val_fraction=options.val_fraction, exclude=options.exclude
    )


def read(images: Images, seed: int, in_channels: int = 3) -> ImageSet:
    """The images, without those that do not decode."""
    from finetune.data import readers

    return readers.read(replace(images, skip_bad_images=True, folds=None, fold=None), in_channels, seed)


def of_run(folder: Path, options: Options) -> tuple[Images, int, ImageSet, list[LabelError]]:
    """The images of a run or cross-validation, with their settings and seed, and its likely label errors."""
    from finetune.audit import label_errors
    from finetune.reporting.report import subject

    found = subject.read(folder)
    images = found.recipe.images
    images = replace(images, exclude=options.exclude) if options.exclude else images
    imageset = read(images, found.recipe.run.seed, found.recipe.net.in_channels)
    try:
        if found.result is None:
            raise UserError("the run has not ended.")
        if options.exclude and not all(split.are_files for split in imageset.splits.values()):
            raise UserError("images that are no files are named by their number, which --exclude changes.")
        errors = label_errors.find(found.result, found.classes)
    except UserError as error:
        print(f"No likely label errors: {error}", file=sys.stderr)
        errors = []
    return images, found.recipe.run.seed, imageset, errors
