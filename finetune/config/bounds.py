"""Check settings against each other, and fill in `auto`. `config/schema.py` checks each by itself."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

from finetune.config.schema import check
from finetune.config.settings import SECTIONS, STARTER_MODEL, STARTER_SIZE, Recipe
from finetune.errors import UserError
from finetune.runtime import files

LONGEST = 10**9  # steps or minutes between two checkpoints


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with `auto` names filled in. Raises `UserError` for a value of the wrong type or out of bounds."""
    for section in SECTIONS:
        check(getattr(recipe, section))
    net, images, run = recipe.net, recipe.images, recipe.run
    on_starter = images.data in ("starter", "starter-source")
    if net.model == "auto":
        net = replace(net, model=STARTER_MODEL if on_starter else "resnet18")
        if on_starter:
            weights = "starter" if net.weights == "default" else net.weights
            net = replace(net, weights=weights, image_size=STARTER_SIZE if net.image_size is None else net.image_size)
    if images.augment not in ("none", "basic") and net.in_channels not in (1, 3):
        raise UserError(
            f"--augment {images.augment} needs 1 or 3 channels, not {net.in_channels}. Use --augment basic or none."
        )
    _check_folds(recipe)
    period(run.checkpoint_every)
    named = net.weights in ("default", "starter", "none")
    if not (named or run.resume or files.expanded(net.weights).exists()):  # a checkpoint holds its own
        kinds = "default, starter, none, a .safetensors or .pth file, or a model folder"
        raise UserError(f"--weights {net.weights}: no such file. It may be {kinds}.")
    if run.lr_find or run.preview:  # no training, so nothing for a tracker
        run = replace(run, tracker="none")
    return replace(recipe, net=net, run=run)


def _check_folds(recipe: Recipe) -> None:
    """Raise `UserError` for a fold that there is not, and for modes that need one fold."""
    images, run = recipe.images, recipe.run
    if images.fold and images.fold > (images.folds or 0):
        why = f"--folds {images.folds} has no such fold" if images.folds else "there are folds with --folds only"
        raise UserError(f"--fold {images.fold}: {why}.")
    for flag, given in (("--preview", run.preview), ("--lr-find", run.lr_find)):
        if given and images.folds and not images.fold:
            raise UserError(f"{flag} is for one run, and --folds {images.folds} are several. Add --fold 1, for one.")


def period(every: str) -> tuple[float, float]:
    """`--checkpoint-every` in steps and in seconds, one of which is infinite; both are for 0."""
    number, unit = every.removesuffix("m"), every[-1:]
    try:
        value = float(number) if unit == "m" else int(number)
    except ValueError:
        value = -1
    if not 0 <= value <= LONGEST:
        raise UserError(f"--checkpoint-every {every}: must be a number of steps (500) or of minutes (10m).")
    never = sys.maxsize, math.inf
    return never if not value else (sys.maxsize, value * 60) if unit == "m" else (value, math.inf)
