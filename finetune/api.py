"""The project from a notebook: open a model, build one, look at a recipe and its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from finetune import artifact, data, freezing, imagesets, plan, recipes, surgery
from finetune.archs import Preprocess
from finetune.recipe import Recipe
from finetune.samples import evaluation_transform, to_input
from finetune.samples import load as load_image

Picture: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def load(run: str | Path) -> tuple[nn.Module, Callable[[Any], Tensor], list[str]]:
    """A run's model in evaluation mode, its transform and its class names, in the order of the model's outputs.

        model, transform, classes = finetune.load("runs/finetune-20250101-120000")
        probabilities = model(transform("bee.jpg")).softmax(1)[0]  # (classes,)

    `run` is a run's folder or a model folder, a stranger's too: no code in it is run. The transform takes a path, a PIL
    image, a tensor (C, H, W) of uint8 or of floats in [0, 1], or a list of them, and gives (N, C, H, W), float32,
    normalised, as in the run's evaluation. Raises `UserError` for a folder that is no model.
    """
    opened = artifact.load(run)
    return opened.model, transform_of(opened.preprocess), opened.classes


def transform_of(preprocess: Preprocess) -> Callable[[Any], Tensor]:
    """The evaluation transform as one function; see `load`."""
    resize_and_crop, channels = evaluation_transform(preprocess), len(preprocess.mean)

    def transform(pictures: Picture | Sequence[Picture]) -> Tensor:
        given = pictures if isinstance(pictures, list | tuple) else [pictures]
        images = torch.stack([resize_and_crop(_tensor(picture, channels)) for picture in given])  # (N, C, H, W)
        return to_input(images, preprocess, torch.device("cpu"), channels_last=True)

    return transform


def _tensor(picture: Picture, channels: int) -> Tensor:
    if not isinstance(picture, Tensor):
        return load_image(str(picture) if isinstance(picture, Path) else picture, channels)
    if picture.ndim != 3 or (picture.dtype != torch.uint8 and not picture.is_floating_point()):
        raise ValueError(
            f"an image is a tensor (C, H, W) of uint8 or floats, not {tuple(picture.shape)} {picture.dtype}"
        )
    if len(picture) == channels:
        return picture
    if {len(picture), channels} != {1, 3}:
        raise ValueError(f"this model takes {channels} channels; the image has {len(picture)}")
    return functional.rgb_to_grayscale(picture) if channels == 1 else picture.expand(3, -1, -1)


def make_recipe(name: str, **settings: Any) -> Recipe:
    """A recipe by name, with settings by their flags' names: `make_recipe("finetune", model="resnet18", epochs=5)`.

    Raises `UserError` for an unknown recipe or setting and for a value out of bounds.
    """
    return recipes.from_settings(name, settings)


def build_model(recipe: Recipe, classes: int) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The network that a recipe starts from, its head new, in the recipe's first phase; and its evaluation transform.

    Frozen depths need no gradient and are in evaluation mode. The head is drawn from torch's global generator. Raises
    `UserError` for weights that cannot be had or do not fit.
    """
    model, preprocess, stages = surgery.build(recipe.net, classes)
    freezing.set_phase(model, stages, recipes.rates(recipe, len(stages)), epoch=0)
    return model, transform_of(preprocess)


def make_plan(recipe: Recipe) -> plan.Plan:
    """What a recipe would do on its images, on one process: `.rows` by depth, `.facts` in words, `.memory` in bytes.

    The images are read and checked; nothing is downloaded but a named set, nothing trained or written. Raises
    `UserError` for images that cannot be read and a network that does not take them.
    """
    imageset = imagesets.read(recipe.images, recipe.net.in_channels, recipe.run.seed)
    model, preprocess, stages = surgery.build(recipe.net, len(imageset.classes), empty=True)
    rates = recipes.rates(recipe, len(stages))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    pairs, frozen = freezing.trains_batchnorm(model, stages, rates), freezing.frozen_epochs(rates)
    loaders = data.make_loaders(imageset.splits, preprocess, recipe, accelerator, pairs, frozen)
    return plan.make(recipe, model, stages, rates, preprocess, imageset, loaders, accelerator, "float32")[0]
