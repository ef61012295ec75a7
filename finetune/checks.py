"""What values the settings may have, checked once, before anything else happens."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from finetune.errors import UserError
from finetune.recipe import STARTER_MODEL, STARTER_SIZE, Recipe


def period(every: str) -> tuple[int, float]:
    """`--checkpoint-every` as updates and seconds, one of which is infinite; both are for 0."""
    number, unit = every.removesuffix("m"), every[-1:]
    try:
        value = float(number) if unit == "m" else int(number)
    except ValueError:
        value = -1
    if value < 0:
        raise UserError(f"--checkpoint-every {every}: must be a number of updates, such as 500, or minutes, as 10m.")
    never = sys.maxsize, float("inf")
    return never if not value else (sys.maxsize, value * 60) if unit == "m" else (value, float("inf"))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with `auto` names filled in and every value checked; a `UserError` names the flag and its bounds."""
    net, images, training, run = recipe.net, recipe.images, recipe.training, recipe.run
    on_starter = images.data in ("starter", "starter-source")
    if net.model == "auto":
        net = replace(net, model=STARTER_MODEL if on_starter else "resnet18")
        if on_starter:
            weights = "starter" if net.weights == "default" else net.weights
            net = replace(net, weights=weights, image_size=STARTER_SIZE if net.image_size is None else net.image_size)

    def check(flag: str, value: float, ok: bool, bounds: str) -> None:
        if not ok:
            raise UserError(f"--{flag} {value}: must be {bounds}.")

    for name in ("epochs", "batch_size", "accumulate", "eval_batch_size", "step_epochs"):
        check(name.replace("_", "-"), getattr(training, name), getattr(training, name) >= 1, "at least 1")
    check("lr", training.lr, 0 < training.lr < float("inf"), "above 0")
    check("momentum", training.momentum, 0 <= training.momentum < 1, "at least 0 and below 1")
    check("weight-decay", training.weight_decay, 0 <= training.weight_decay < 1e6, "at least 0 and finite")
    check("step-factor", training.step_factor, 0 < training.step_factor <= 1, "above 0 and at most 1")
    check("warmup", training.warmup, 0 <= training.warmup < 1, "a share, at least 0 and below 1")
    check("clip-norm", training.clip_norm, training.clip_norm >= 0, "at least 0 (0 never clips)")
    check("label-smoothing", training.label_smoothing, 0 <= training.label_smoothing < 1, "at least 0 and below 1")
    check("dropout", net.dropout, 0 <= net.dropout < 1, "at least 0 and below 1")
    check("in-channels", net.in_channels, net.in_channels >= 1, "at least 1")
    for width in net.hidden:
        check("hidden", width, width >= 1, "widths of at least 1")
    if net.pool_size is not None:
        check("pool-size", net.pool_size, net.pool_size >= 1, "at least 1")
    check("ema", training.ema, 0 <= training.ema < 1, "at least 0 and below 1")
    check("patience", training.patience, training.patience >= 0, "at least 0 (0 never stops early)")
    check("min-delta", training.min_delta, training.min_delta >= 0, "at least 0")
    check("mixup", images.mixup, images.mixup >= 0, "at least 0 (0 never mixes)")
    check("cutmix", images.cutmix, images.cutmix >= 0, "at least 0 (0 never mixes)")
    depths = recipe.depths
    check("layers", depths.layers, depths.layers >= 1, "at least 1")
    check("decay", depths.decay, 0 < depths.decay <= 1, "above 0 and at most 1")
    check("floor", depths.floor, 0 <= depths.floor <= 1, "at least 0 and at most 1")
    check("unfreeze-every", depths.unfreeze_every, depths.unfreeze_every >= 1, "at least 1")
    check("head-epochs", depths.head_epochs, depths.head_epochs >= 0, "at least 0")
    check("body-scale", depths.body_scale, 0 < depths.body_scale <= 1, "above 0 and at most 1")
    check("views", images.views, images.views >= 0, "at least 0 (0 draws fresh ones in each epoch)")
    if run.cache_gb is not None:
        check("cache-gb", run.cache_gb, run.cache_gb >= 0, "at least 0 (0 keeps nothing)")
    check("val-fraction", images.val_fraction, 0 < images.val_fraction < 1, "between 0 and 1")
    check("crop-scale", images.crop_scale, 0 < images.crop_scale <= 1, "above 0 and at most 1")
    check("workers", images.workers, images.workers >= -1, "a number of processes, or -1 for auto")
    if images.augment not in ("none", "basic") and net.in_channels not in (1, 3):
        raise UserError(f"--augment {images.augment} needs grey or colour images; here use basic or none.")
    check("log-every", run.log_every, run.log_every >= 0, "at least 0 (0: never)")
    check("keep-checkpoints", run.keep_checkpoints, run.keep_checkpoints >= 1, "at least 1")
    period(run.checkpoint_every)
    check("seed", run.seed, 0 <= run.seed < 2**63, "at least 0 and below 2^63")
    named = net.weights in ("default", "starter", "none")
    if not (named or run.resume or Path(net.weights).expanduser().exists()):  # a checkpoint holds its own
        kinds = "default, none, a .safetensors or .pth file, or a model folder"
        raise UserError(f"--weights {net.weights}: no such file. It may be {kinds}.")
    if net.image_size is not None:
        check("image-size", net.image_size, net.image_size >= 8, "at least 8 pixels")
    if run.lr_find:  # no training, so nothing for a tracker
        run = replace(run, tracker="none")
    return replace(recipe, net=net, run=run)
