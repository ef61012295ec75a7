"""The recipes, one module each, and how to make one: from a command line, a dict of settings, a run's config.json.

A recipe is a module with `SETTINGS`, a `Recipe`, and `rate(settings, depth, depths)`, which gives one depth of the
network (0 is the stem, `depths - 1` the head) its `Rate`, or `None` if it is frozen. The module's docstring is the
description in `train.py --recipe NAME --help`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

from finetune.config import command_line
from finetune.config.bounds import resolve
from finetune.config.schema import convert
from finetune.config.settings import SECTIONS, Rate, Recipe
from finetune.errors import UserError, unknown

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))
SETTINGS = {field.name for section in SECTIONS for field in fields(getattr(Recipe(), section))}


def load(name: str) -> ModuleType:
    """The module of a recipe. Raises `UserError` for an unknown name."""
    if name not in NAMES:
        raise unknown("recipe", name, NAMES)
    return importlib.import_module(f"finetune.recipes.{name}")


def depth_name(depth: int, depths: int) -> str:
    """`stem`, `stage 1`, … or `head`."""
    return {0: "stem", depths - 1: "head"}.get(depth, f"stage {depth}")


def rates(recipe: Recipe, depths: int) -> list[Rate | None]:
    """The rate of each depth, stem first; None where it is frozen, by the recipe or by `--train-depths`.

    Raises `UserError` where all are, and for a name in `--train-depths` of no depth that the recipe trains.
    """
    module = load(recipe.recipe)
    found = [module.rate(recipe, depth, depths) for depth in range(depths)]
    if not any(found):
        raise UserError(f"the recipe {recipe.recipe} trains no depth: its rate() returns None for each.")
    if recipe.depths.train_depths is not None:
        found = _restricted(recipe, found)
    return found


def _restricted(recipe: Recipe, found: list[Rate | None]) -> list[Rate | None]:
    """The rates with `None` for each depth that is not in `--train-depths`. The earliest depth starts at once."""
    names = [depth_name(depth, len(found)) for depth in range(len(found))]
    depth_of = {name.removeprefix("stage "): depth for depth, name in enumerate(names)}
    given = [name.removeprefix("stage ") for name in recipe.depths.train_depths]
    trained = [name for name, depth in depth_of.items() if found[depth]]
    wrong = [name for name in given if name not in trained]
    if wrong or not given:
        problem = f"{recipe.recipe} keeps {wrong[0]} frozen" if wrong else "name at least one depth"
        if wrong and wrong[0] not in depth_of:
            problem = f"{recipe.net.model} has no depth {wrong[0]}"
        raise UserError(
            f"{' '.join(['--train-depths', *given])}: {problem}. {recipe.recipe} trains {', '.join(trained)}."
        )
    chosen = {depth_of[name] for name in given}
    first = min(found[depth].start for depth in chosen)
    return [
        rate._replace(start=rate.start - first) if rate and depth in chosen else None
        for depth, rate in enumerate(found)
    ]


def from_command_line(arguments: list[str]) -> Recipe:
    """The recipe of a command line, resolved and checked.

    Prints help, or the error of a wrong flag, and exits with 0 or 2.
    """
    name = Recipe().recipe
    for k, word in enumerate(arguments):
        if word == "--recipe" and k + 1 < len(arguments):
            name = arguments[k + 1]
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    module = load(name)
    names = f"Recipes: {', '.join(NAMES)}. Every flag overrides the recipe's default."
    recipe = command_line.parse(Recipe, "train.py", arguments, module.SETTINGS, f"{module.__doc__}\n{names}")
    return resolve(recipe)


def from_settings(name: str, settings: dict[str, Any]) -> Recipe:
    """The recipe of this name with other settings (`{"batch_size": 8}`), resolved and checked.

    Raises `UserError` for an unknown setting, and for a value of the wrong type or out of bounds.
    """
    recipe = load(name).SETTINGS
    if wrong := settings.keys() - SETTINGS:
        raise unknown("setting", min(wrong), SETTINGS)
    for section in SECTIONS:
        own = getattr(recipe, section)
        given = {
            field.name: convert(type(own), field.name, settings[field.name])
            for field in fields(own)
            if field.name in settings
        }
        recipe = replace(recipe, **{section: replace(own, **given)})
    return resolve(recipe)


def from_config(config: dict[str, Any]) -> Recipe:
    """The recipe of a run's config.json, whose other entries are ignored."""
    if config.get("recipe") not in NAMES:
        raise UserError(f"config.json names the recipe {config.get('recipe')!r}, which this version does not have.")
    try:
        return from_settings(config["recipe"], {key: value for key, value in config.items() if key in SETTINGS})
    except UserError as error:
        raise UserError(f"config.json has a setting that this version does not take: {error}") from error
