"""`report`: one HTML page of a run, a cross-validation or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands import DataOption, RunsArgument, new_file
from finetune.config.command_line import parse
from finetune.config.settings import Bounds
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.reporting.report.pictures import HeatMap
    from finetune.reporting.report.subject import Subject


@dataclass(frozen=True)
class Options:
    """Write a report of a run, of a cross-validation, or of several runs with a comparison: one HTML file to pass on.

    It needs no network. A run that has not ended is shown up to its last epoch. Without the images, or after they have
    changed, there are no pictures.
    """

    runs: RunsArgument
    """Runs' folders, or the folder of a cross-validation."""
    data: DataOption = None
    output: Path | None = None
    """A new .html file. None: report.html in the run's folder, of several runs in the first one's; it is replaced."""
    cell_images: Annotated[int, Bounds(at_least=0, at_most=96)] = 12
    """Pictures of each cell of the confusion matrix, at most. 0: none but the worst mistakes."""
    image_mb: Annotated[float, Bounds(at_least=0, at_most=100)] = 4.0
    """Size of all pictures in MB, at most; the worst mistakes come first. 0: no pictures."""


def main(arguments: list[str]) -> int:
    """Write the page, and print its path."""
    options = parse(Options, "python -m finetune report", arguments)
    output = new_file("--output", options.output)
    if not options.runs:
        raise UserError("report takes a run's folder, or several.")

    from finetune.reporting import comparison
    from finetune.reporting.report import page, pictures, subject
    from finetune.runtime import files

    subjects = [subject.read(folder, options.data) for folder in options.runs]
    path = output or subjects[0].folder / "report.html"
    if len(subjects) > 1:
        for one in subjects:
            if one.folds:
                raise UserError(f"{one.folder} is a cross-validation, which has a report of its own: give it alone.")
        best = comparison.ordered([one.run for one in subjects], "accuracy")
        subjects.sort(key=lambda one: best.index(one.run))
    names = comparison.unique_names([one.run for one in subjects]) if len(subjects) > 1 else [subjects[0].name]
    reports, limit = [], int(options.image_mb * 1e6 / len(subjects))
    for one, name in zip(subjects, names, strict=True):
        chosen = pictures.choose(one.result, options.cell_images) if one.result else pictures.Pictures()
        reports.append(page.report(one, name, pictures.embed(one, chosen, limit, heat_map(one))))
    text = page.render(reports, {"cell_images": options.cell_images, "image_mb": options.image_mb})
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Name another file: --output FILE.html") from error
    for one in subjects:
        for note in one.notes:
            print(f"{one.name}: {note}")
    print(f"Report  {path} ({len(text.encode()) / 1e6:.1f} MB)")
    return 0


def heat_map(subject: Subject) -> HeatMap | None:
    """What draws over an image what speaks for a class; None for a cross-validation, which has several models."""
    from finetune.models import explain, model_folder
    from finetune.reporting import image_grids

    if subject.folds or subject.metadata is None or subject.result is None or subject.result.images is None:
        return None
    opened = model_folder.load(subject.folder)
    return partial(image_grids.heat_map, explain.make_explainer(opened.model, opened.net, opened.preprocess))
