"""Parameter groups: one per depth and kind of decay, each with its own learning rate."""

from __future__ import annotations

from typing import Any

import torch

from finetune.config.settings import Training
from finetune.models.network import Network
from finetune.training import schedule


def parameter_groups(network: Network, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups of all parameters that are ever trained, head first.

    Each group holds `depth`, `lr_scale`, `start` (the epoch from which it is trained) and `weight_decay`, which is 0
    where `Network.no_decay` says so. Every parameter is in exactly one group, or frozen.
    """
    depths = network.depths()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.model.named_parameters():
        depth = depths[name]
        rate = network.rates[depth]
        if rate is None:
            continue
        decays = not network.no_decay(name)
        options = {"depth": depth, "lr_scale": rate.lr_scale, "start": rate.start}
        options["weight_decay"] = weight_decay if decays else 0.0
        groups.setdefault((-depth, decays), {**options, "params": []})["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    network: Network, training: Training, scaler: torch.amp.GradScaler | None = None
) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW over the parameter groups. `set_rates` sets their rates before every step.

    `scaler` is fp16's gradient scaler, if there is one.
    """
    groups, lr = parameter_groups(network, training.weight_decay), schedule.peak_rate(training.lr)
    if training.optimizer == "sgd":
        # The scaler calls fused SGD also for a step that it skips. If that is a group's first, its momentum buffers are
        # allocated and never written, and the next step reads them. Unfused SGD is not called for a skipped step.
        return torch.optim.SGD(groups, lr=lr, momentum=training.momentum, fused=scaler is None)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer](groups, lr, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its learning rate: `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
