"""The Python API: open a trained model, build a new one, inspect a recipe and its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune import recipes
from finetune.config.settings import Recipe
from finetune.data import readers
from finetune.data.loader import make_loaders
from finetune.inference.transform import make_transform
from finetune.models import network, pretrained
from finetune.reporting import plan


def load(run: str | Path) -> tuple[nn.Module, Callable[[Any], Tensor], list[str]]:
    """A run's model in evaluation mode, its transform and its class names, in the order of the model's outputs.

        model, transform, classes = finetune.load("runs/finetune-20250101-120000")
        probabilities = model(transform("bee.jpg")).softmax(1)[0]  # (classes,)

    `run` is a run's folder or a model folder, from any source: no code in it is run; or the name of a torchvision
    model, as it was pretrained on ImageNet. The transform takes a path, a PIL
    image, an array, a tensor (C, H, W) of uint8 or of floats in [0, 1], or a list of them. It returns (N, C, H, W),
    float32, normalised, as in the run's evaluation. Raises `UserError` for a folder that is no model.
    """
    opened = pretrained.open_model(run)
    return opened.model, make_transform(opened.preprocess), opened.classes


def make_recipe(name: str, **settings: Any) -> Recipe:
    """A recipe by name, with settings by their flags' names: `make_recipe("finetune", model="resnet18", epochs=5)`.

    Raises `UserError` for an unknown recipe or setting and for a value out of bounds.
    """
    return recipes.from_settings(name, settings)


def build_model(recipe: Recipe, classes: int) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A recipe's network in its first phase, with a new head for so many classes; and its evaluation transform.

    Frozen depths have `requires_grad` off and are in evaluation mode. torch's global generator initialises the head.
    Raises `UserError` for weights that cannot be loaded or do not fit.
    """
    built = network.build(recipe, classes)
    return built.model, make_transform(built.preprocess)


def make_plan(recipe: Recipe) -> plan.Plan:
    """The plan of a run on one process: `.rows` by depth, `.facts` in words, `.memory` in bytes.

    The images are read and checked. Only torchvision's sets are downloaded; nothing is trained or written. Raises
    `UserError` for images that cannot be read or that the network does not take.
    """
    imageset = readers.read(recipe.images, recipe.net.in_channels, recipe.run.seed)
    built = network.build(recipe, len(imageset.classes), len(imageset.splits["train"].labels), empty=True)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    batchnorm, frozen = built.trains_batchnorm(), built.frozen_epochs()
    loaders = make_loaders(imageset.splits, built.preprocess, recipe, accelerator, batchnorm, frozen)
    return plan.make(recipe, built, imageset, loaders, accelerator, "float32")
