"""`plot`: draw a run's charts and image grids again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.commands import DataOption, RunArgument
from finetune.config.command_line import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from finetune.inference.predictor import Predictor
    from finetune.training.evaluation import Scores


@dataclass(frozen=True)
class Options:
    """Draw a run's charts and image grids again, into its plots/.

    A run that has not ended is drawn up to its last epoch. Without the images, only the charts are drawn.
    """

    run: RunArgument
    """A run's folder."""
    data: DataOption = None


def main(arguments: list[str]) -> int:
    """Draw, and print the folder."""
    options = parse(Options, "python -m finetune plot", arguments)

    from finetune.data import run_images
    from finetune.data.loader import make_loaders
    from finetune.inference.predictor import open_run
    from finetune.models.explain import make_explainer
    from finetune.reporting import charts, image_grids, run_folder
    from finetune.training.evaluation import Scores

    run = run_folder.read(options.run)
    predictor = open_run(options.run, "run")
    recipe = run_images.moved(predictor.recipe, options.data)
    folder, best = run.folder / "plots", run.summary["best_epoch"]
    if not any(record["epoch"] == best for record in run.history):
        raise UserError(f"{run.folder}: metrics.jsonl lacks epoch {best}, the best one in summary.json.")
    path = run.folder / run_folder.SCORES
    scores, epoch = Scores.load(path) if path.is_file() else (None, 0)
    scores = scores if epoch == best else None
    if scores is not None and int(scores.predictions.max()) >= len(predictor.metadata.classes):
        raise UserError(f"{path} belongs to a model with more classes. Delete it, and the images are scored again.")
    folder.mkdir(exist_ok=True)
    charts.curves(folder / "curves.png", run.history, run.summary)
    try:
        imageset = run_images.read(recipe, predictor.config, predictor.metadata.net.in_channels)
    except UserError as error:
        print(f"Only the charts are drawn: {error}")
    else:
        loaders = make_loaders(imageset.splits, predictor.metadata.preprocess, recipe, predictor.accelerator)
        if scores is None or scores.labels.tolist() != imageset.splits["val"].labels:
            scores = _score(predictor, loaders["val"])
        known = predictor.metadata
        explainer = make_explainer(predictor.model, known.net, known.preprocess)
        image_grids.of_run(folder, loaders, scores, known.classes, explainer)
    if scores is not None:
        charts.of_predictions(folder, scores.first(), predictor.metadata.classes, "Validation")
    print(f"Pictures  {folder}")
    return 0


def _score(predictor: Predictor, loader: DataLoader) -> Scores:
    """The model's scores on the validation images, for a run without them."""
    from finetune.training.evaluation import evaluate
    from finetune.training.step import Feed

    feed = Feed(predictor.model, loader, predictor.metadata.preprocess)
    return evaluate(feed, predictor.accelerator, predictor.recipe.run.channels_last)
