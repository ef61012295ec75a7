"""Check settings: each value against its type and bounds, values against each other, and `auto` filled in."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from finetune.config.settings import SECTIONS, STARTER_MODEL, STARTER_SIZE, Bounds, Recipe
from finetune.errors import UserError

_TYPES = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Path: (Path, "a path"),
    type(None): (type(None), "None"),
}


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with `auto` names filled in. Raises `UserError` for a value of the wrong type or out of bounds."""
    for section in SECTIONS:
        for name, value, expected in wrong_values(getattr(recipe, section)):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"--{name.replace('_', '-')} {shown}: must be {expected}.")
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
    if not (named or run.resume or Path(net.weights).expanduser().exists()):  # a checkpoint holds its own
        kinds = "default, starter, none, a .safetensors or .pth file, or a model folder"
        raise UserError(f"--weights {net.weights}: no such file. It may be {kinds}.")
    if run.lr_find:  # no training, so nothing for a tracker
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
    if not 0 <= value < math.inf:
        raise UserError(f"--checkpoint-every {every}: must be a number of steps (500) or of minutes (10m).")
    never = sys.maxsize, math.inf
    return never if not value else (sys.maxsize, value * 60) if unit == "m" else (value, math.inf)


def wrong_values(section: Any) -> list[tuple[str, Any, str]]:
    """The settings of a section (`Net`, `Images`, …) with a wrong value: name, value, and what it must be."""
    found = []
    for name, hint in _hints(type(section)).items():
        value = getattr(section, name)
        if not _fits(value, hint):
            found.append((name, value, _expected(hint)))
    return found


def convert(section: type, name: str, value: Any) -> Any:
    """A setting as JSON or a notebook gives it: a list becomes a tuple, a path what the setting takes."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str | Path):
        return Path(value) if _takes(_hints(section)[name], Path) else str(value)
    return value


def _takes(hint: Any, kind: type) -> bool:
    """Whether a type hint is this type or has it among its alternatives, annotated or not."""
    return hint is kind or any(_takes(one, kind) for one in get_args(hint))


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, and within its bounds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(
            _within(value, bounds) for bounds in arguments[1:] if isinstance(bounds, Bounds)
        )
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, arguments[0]) for one in value)
    if arguments:  # a union
        return any(_fits(value, one) for one in arguments)
    return isinstance(value, _TYPES[hint][0]) and (hint is bool or not isinstance(value, bool))


def _within(value: float, bounds: Bounds) -> bool:
    return (
        math.isfinite(value)
        and (bounds.at_least is None or value >= bounds.at_least)
        and (bounds.above is None or value > bounds.above)
        and (bounds.at_most is None or value <= bounds.at_most)
        and (bounds.below is None or value < bounds.below)
    )


def _expected(hint: Any) -> str:
    """A field's type and bounds in words: `a number at least 0 and below 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [
            f"{name.replace('_', ' ')} {limit}"
            for bounds in arguments[1:]
            if isinstance(bounds, Bounds)
            for name, limit in bounds._asdict().items()
            if limit is not None
        ]
        return f"{_expected(arguments[0])} {' and '.join(limits)}".strip()
    if origin is Literal:
        return f"{'one of ' if arguments[1:] else ''}{', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list, each {_expected(arguments[0])}"
    if arguments:
        return " or ".join(_expected(one) for one in arguments)
    return _TYPES[hint][1]
