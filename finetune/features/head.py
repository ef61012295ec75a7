"""The solved linear head: whether a run can have one, its views, and the call of the solver."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.config.settings import Recipe
from finetune.errors import UserError
from finetune.features.graph_split import Split, Splitter
from finetune.models.network import Network
from finetune.runtime import devices
from finetune.training import head_solver
from finetune.training.head_solver import FOLDS, STRENGTHS, Solution
from finetune.training.loss import class_weights


def decide(recipe: Recipe, splitter: Splitter, images: int, free: int) -> tuple[Split | None, str]:
    """The network split before its head, if the head is to be solved (`--solver`); else the reason.

    `images` are the training images, `free` the bytes of memory for their features. The network, which may be on the
    meta device, is left in its first phase. Raises `UserError` where `--solver lbfgs` asks for it and it cannot be.
    """
    network = splitter.network
    why_not = "--solver sgd" if recipe.training.solver == "sgd" else _other_training(recipe, network)
    split = None if why_not else _split(splitter)
    if not why_not and split is None:
        why_not = f"no layer of {recipe.net.model} gives the head's input alone"
    if split:
        rows, classes = images * views(recipe), network.head.weight.shape[0]
        need = rows * (3 * 4 * split.shape[0] + 3 * 4 * classes * (FOLDS + 1))
        # `auto` leaves half for the rest of the run; a run that is resumed has its head already.
        if need > (free if recipe.training.solver == "lbfgs" else free // 2):
            split, why_not = None, f"its features would need {need / 1e9:.3g} GB"
    if why_not and recipe.training.solver == "lbfgs":
        raise UserError(f"--solver lbfgs: {why_not}. Use --solver sgd, or auto.")
    return split, why_not


def flips(recipe: Recipe) -> tuple[bool, bool]:
    """Whether the head is solved on mirror images too, and on images upside down."""
    images = recipe.images
    return images.hflip and images.augment != "none", images.vflip and images.augment != "none"


def views(recipe: Recipe) -> int:
    """Views of each image that the head is solved on: the evaluation transform's, and that flipped in each way."""
    return 2 ** sum(flips(recipe))


def describe(recipe: Recipe, images: int, split: Split) -> str:
    """The plan's line about a head that is solved: on so many training images, split from its network there."""
    flipped = {
        (False, False): "",
        (True, False): " and their mirror images",
        (False, True): ", also upside down",
        (True, True): ", also mirrored, upside down and both",
    }[flips(recipe)]
    l2 = recipe.training.l2
    strength = f"{l2:g}" if l2 else f"{STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, chosen by held-out images"
    return f"solved on {images} images{flipped}, {split.shape[0]} features each; L2 strength {strength}"


def planned_views(recipe: Recipe, network: Network) -> int:
    """The views that the head will be solved on; 0 where a setting asks for gradient steps."""
    return 0 if recipe.training.solver == "sgd" or _other_training(recipe, network) else views(recipe)


def solve(
    recipe: Recipe, features: list[Tensor], labels: list[int], classes: int, accelerator: Accelerator
) -> Solution:
    """The best heads on the training images' features (N, d), one tensor per view. Collective.

    The main process computes, and the others wait.
    """
    weighted = recipe.training.class_weights or recipe.images.balanced

    def work() -> Solution:
        device = accelerator.device
        return head_solver.solve(
            [view.to(device) for view in features],
            torch.tensor(labels, device=device),
            class_weights(labels, classes, weighted).to(device),
            recipe.run.seed,
            recipe.training.l2,
        )

    return devices.from_main(accelerator, work)


def _other_training(recipe: Recipe, network: Network) -> str:
    """The setting that asks for another head or loss than the solver's; empty where there is none."""
    net, images, training = recipe.net, recipe.images, recipe.training
    if net.head != "linear" or net.pool_size is not None:
        return f"the head is not linear (--head {net.head})" if net.head != "linear" else "--pool-size"
    if net.weights == "none":
        return "the layers before the head are random (--weights none)"
    if not network.trains_head_alone():
        return ""  # the solved head is where training starts, whatever its loss
    if images.mixup or images.cutmix:
        return "images are mixed (--mixup, --cutmix)"
    if training.label_smoothing:
        return "the loss is another (--label-smoothing)"
    return "" if images.views else "augmentation is new in each epoch (--views 0)"


def _split(splitter: Splitter) -> Split | None:
    """The network in evaluation mode, split where only its head is left: behind features (d,) or a map (d, h, w)."""
    network, head = splitter.network, splitter.network.head
    network.model.eval().requires_grad_(False)
    head.requires_grad_(True)
    try:
        found = splitter.find()
    finally:
        network.set_phase(epoch=0)
    features, axes = (head.in_channels, 3) if isinstance(head, nn.Conv2d) else (head.in_features, 1)
    return found if found and (found.shape[0], len(found.shape)) == (features, axes) else None
