"""The recipes by name, and the command line that each of them makes.

A recipe is a module with `SETTINGS`, a `Recipe`, and `rate(settings, depth, depths)`, which answers for one depth of
the network (0 the stem, `depths - 1` the head): `None` where it is frozen, else its `Rate`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from finetune.checks import resolve
from finetune.errors import UserError, unknown
from finetune.helptext import paragraphs, with_help
from finetune.recipe import Depths, Images, Net, Rate, Recipe, Run, Training

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a recipe; a wrong name is a `UserError` with the nearest ones."""
    if name not in NAMES:
        raise unknown("recipe", name, NAMES)
    return importlib.import_module(f"finetune.recipes.{name}")


def rates(recipe: Recipe, depths: int) -> list[Rate | None]:
    """The recipe's answer for each depth, stem first."""
    module = load(recipe.recipe)
    return [module.rate(recipe, depth, depths) for depth in range(depths)]


def from_command_line(arguments: list[str]) -> Recipe:
    """The recipe that `--recipe` names (else the first default), with every other flag applied, resolved and checked.

    Prints help or a wrong flag's error itself and exits, with 0 or 2.
    """
    name = Recipe().recipe
    for k, word in enumerate(arguments):
        if word == "--recipe" and k + 1 < len(arguments):
            name = arguments[k + 1]
        elif word.startswith("--recipe="):
            name = word.removeprefix("--recipe=")
    module = load(name)
    known = f"Recipes: {', '.join(NAMES)}. Every flag below overrides the recipe's own default."
    for section in (Net, Images, Training, Depths, Run):
        with_help(section)
    recipe = tyro.cli(
        with_help(Recipe),
        args=arguments,
        default=module.SETTINGS,
        prog="train.py",
        description=f"{paragraphs(module.__doc__)}\n\n{known}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        compact_help=False,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    return resolve(recipe)


def from_settings(name: str, settings: dict[str, Any]) -> Recipe:
    """The recipe of this name with settings by their flags' names (`batch_size=8`), resolved and checked.

    Raises `UserError` for a name that no setting has, with the nearest ones.
    """
    recipe = load(name).SETTINGS
    left = dict(settings)
    for section in ("net", "images", "training", "depths", "run"):
        own = getattr(recipe, section)
        given = {field.name: left.pop(field.name) for field in fields(own) if field.name in left}
        for key, value in given.items():
            if isinstance(value, list):
                given[key] = tuple(value)
            elif key in ("output", "data_root") and value is not None:
                given[key] = Path(value)
        recipe = replace(recipe, **{section: replace(own, **given)})
    if left:
        known = [field.name for part in fields(recipe) if part.name != "recipe" for field in fields(_section(part))]
        raise unknown("setting", next(iter(left)), known)
    try:
        return resolve(recipe)
    except TypeError as error:
        raise UserError(f"a setting of {name} is of the wrong kind: {error}.") from error


def from_config(config: dict[str, Any]) -> Recipe:
    """The recipe that a run's config.json was written for; what it found out besides is passed over."""
    default = Recipe()
    known = {f.name for part in fields(default) if part.name != "recipe" for f in fields(_section(part))}
    if config.get("recipe") not in NAMES:
        raise UserError(f"config.json names the recipe {config.get('recipe')!r}, which is none of this version's.")
    return from_settings(config["recipe"], {key: value for key, value in config.items() if key in known})


def _section(part: Any) -> Any:
    return part.default_factory()
