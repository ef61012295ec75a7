"""The recipes by name, and the command line that each of them makes.

A recipe is a module with `SETTINGS`, a `Recipe`, and `rate(settings, depth, depths)`, which answers for one depth of
the network (0 the stem, `depths - 1` the head): `None` where it is frozen, else its `Rate`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from types import ModuleType

import tyro

from finetune.errors import unknown
from finetune.recipe import Rate, Recipe, resolve

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
    description = f"{module.__doc__}\nRecipes: {', '.join(NAMES)}. Every flag below overrides the recipe's own default."
    recipe = tyro.cli(
        Recipe,
        args=arguments,
        default=module.SETTINGS,
        prog="train.py",
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        compact_help=False,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )
    return resolve(recipe)
