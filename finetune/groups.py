"""Parameter groups: one per depth and kind of decay, each with its own learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune.archs import Family, parameter_depths
from finetune.recipe import Rate, Training


def parameter_groups(
    model: nn.Module, stages: list[list[str]], rates: list[Rate | None], weight_decay: float, no_decay: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The parameters that are ever trained, head first, as an optimizer takes them.

    Each group holds `depth`, `scale` (of the learning rate), `start` (the epoch from which it is trained) and
    `weight_decay`, which is 0 for biases and normalisation parameters (everything with fewer than two axes) and for
    what has one of `no_decay` in its path. Every parameter is in exactly one group, or frozen.
    """
    depths = parameter_depths(model, stages)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        depth = depths[name]
        rate = rates[depth]
        if rate is None:
            continue
        decays = parameter.ndim > 1 and not set(name.split(".")) & set(no_decay)
        given = {
            "depth": depth,
            "scale": rate.scale,
            "start": rate.start,
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((-depth, decays), {**given, "params": []})["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    model: nn.Module,
    stages: list[list[str]],
    rates: list[Rate | None],
    training: Training,
    family: Family,
    scaler: torch.amp.GradScaler | None = None,
) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW over the parameter groups; their rates are set before every update.

    `scaler` is what fp16 scales its gradients with; it takes the steps.
    """
    groups = parameter_groups(model, stages, rates, training.weight_decay, family.no_decay)
    if training.optimizer == "sgd":
        # Fused SGD is called for skipped steps too. If one is a group's first, its momentum buffers are
        # allocated and never written, and the next step reads them. Unfused, a skipped step does not reach SGD.
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum, fused=scaler is None)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer](groups, training.lr, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its learning rate: `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
