"""Settings without effect in a run, for the plan's `no effect` line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from finetune import recipes
from finetune.config.settings import SECTIONS, Recipe
from finetune.errors import UserError

# What only training by steps uses.
STEPS = (
    "epochs", "batch_size", "accumulate", "optimizer", "lr", "momentum", "weight_decay", "schedule", "step_epochs",
    "step_factor", "warmup", "clip_norm", "ema", "batchnorm", "interpolate", "patience", "min_delta",
)  # fmt: skip


def describe(recipe: Recipe, depths: int, solved: bool, steps: bool) -> str:
    """The settings that are not the recipe's defaults and have no effect, as flags with the reason; empty for none.

    `depths` are those of the network, `solved` says whether its head is solved, `steps` whether anything is trained.
    """
    default = recipes.load(recipe.recipe).SETTINGS
    given = {
        field.name: value
        for section in SECTIONS
        for field in fields(getattr(recipe, section))
        if (value := getattr(getattr(recipe, section), field.name)) != getattr(getattr(default, section), field.name)
    }
    found: dict[str, str] = {}  # flag → reason, the first that holds
    for reason, names in (*_reasons(recipe, solved, steps), *_depths(recipe, given, depths)):
        for name in names:
            if name in given:
                found.setdefault(_flag(name, given[name]), reason)
    reasons = dict.fromkeys(found.values())
    return "; ".join(f"{', '.join(flag for flag in found if found[flag] == reason)}: {reason}" for reason in reasons)


def _reasons(recipe: Recipe, solved: bool, steps: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Why settings have no effect in this run, and which."""
    net, images, training, run = recipe.net, recipe.images, recipe.training, recipe.run
    if not steps:
        yield "a solved head needs no steps (--solver sgd trains it by steps)", STEPS
        random = ("crop_scale", "erase", "views", *(("augment",) if images.augment != "none" else ()))
        yield "a solved head gets each image as it is evaluated, and flipped", random
    if not solved:
        yield "the head is not solved", ("l2", "interpolate")
    if net.head == "linear":
        yield "the head is linear (--head mlp has hidden layers)", ("hidden", "dropout", "head_batchnorm")
    if net.head == "concat_pool":
        yield "a concat_pool head has BatchNorm", ("head_batchnorm",)
    if net.in_channels != 1:
        yield "the images are not grey (--in-channels 1)", ("first_layer",)
    if images.augment == "none":
        yield "--augment none", ("crop_scale", "hflip", "vflip", "erase")
    if training.optimizer != "sgd":
        yield f"{training.optimizer} has none", ("momentum",)
    if training.schedule not in ("step", "plateau"):
        yield f"the schedule is {training.schedule}", ("step_epochs", "step_factor")
    if not training.patience:
        yield "there is no early stopping (--patience)", ("min_delta",)
    if run.tracker == "none":
        yield "--tracker none", ("project", "log_every", "log_model")


def _depths(recipe: Recipe, given: dict[str, Any], depths: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which of the settings of depths leave the rates as they are."""
    default, rates = recipes.load(recipe.recipe).SETTINGS.depths, recipes.rates(recipe, depths)
    for field in fields(default):
        if field.name in given:
            without = replace(recipe.depths, **{field.name: getattr(default, field.name)})
            with suppress(UserError):  # --train-depths may name a depth that is trained by this setting alone
                if recipes.rates(replace(recipe, depths=without), depths) == rates:
                    yield f"{recipe.recipe} trains the same without it", (field.name,)


def _flag(name: str, value: Any) -> str:
    return f"--{'no-' * (value is False)}{name.replace('_', '-')}"
