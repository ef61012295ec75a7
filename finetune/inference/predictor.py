"""A trained model on its device, and its predictions for image files."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune import recipes
from finetune.config.settings import Recipe
from finetune.data.decode import load
from finetune.data.transforms import evaluation_transform, to_input
from finetune.errors import UserError
from finetune.models import pretrained
from finetune.models.architectures import Preprocess
from finetune.models.metadata import Metadata
from finetune.reporting import run_folder
from finetune.runtime import devices, files
from finetune.training.evaluation import padded


@dataclass(frozen=True)
class Predictor:
    """A model on its device, with the settings of its run."""

    model: nn.Module
    """In evaluation mode."""
    metadata: Metadata
    recipe: Recipe
    """The run's settings; the defaults for a model folder without its run."""
    config: dict[str, Any]
    """The run's config.json; empty for a model without its run."""
    folder: Path | None
    """The model folder; None for a torchvision model as it was pretrained."""
    accelerator: Accelerator

    @property
    def has_run(self) -> bool:
        """Whether the run's settings are known."""
        return bool(self.config)


def open_run(run: Path, precision: str, tta: bool = False, weights: str = "default") -> Predictor:
    """Open a run's folder, a model folder or, by name, a torchvision model; with `tta`, the model is `Mirrored`.

    `weights` are a torchvision model's (see `pretrained.open_model`). `precision` is that of `--precision`, or `run`
    for the run's own setting. Without a GPU, fp16 as the run's own setting becomes the best that the device has. Raises
    `UserError` for a folder that is no model.
    """
    opened = pretrained.open_model(run, weights)
    home = opened.folder.parent if opened.folder else Path()
    path = home / run_folder.CONFIG
    has_run = opened.folder is not None and opened.folder.name == "model" and path.is_file()
    config = files.read_json(path) if has_run else {}
    recipe = recipes.from_config(config) if has_run else Recipe()
    chosen = recipe.run.precision if precision == "run" else precision
    lacking = precision == "run" and chosen == "fp16" and not torch.accelerator.is_available()
    accelerator, words = devices.make_accelerator("auto" if lacking else chosen, "none", home)
    if lacking and accelerator.is_main_process:
        print(f"The run's precision is fp16, which needs a GPU. Here it is {words}.", file=sys.stderr)
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    model = opened.model.to(accelerator.device, memory_format=layout)
    model = Mirrored(model).eval() if tta else model
    return Predictor(model, opened.metadata, recipe, config, opened.folder, accelerator)


class Mirrored(nn.Module):
    """Test-time augmentation: the mean of the probabilities of an image and of its mirror image, as logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([self.model(x), self.model(x.flip(-1))]).float()  # (2, N, classes)
        return views.log_softmax(-1).logsumexp(0) - math.log(2)  # (N, classes); finite where a probability underflows


class Prediction(NamedTuple):
    """The model's prediction for one image file."""

    path: str
    top: list[tuple[int, float]]
    """Classes and their probabilities, most probable first; empty where the image does not decode."""
    error: str
    """Why the image does not decode; else empty."""
    image: Tensor | None
    """The network's input before normalisation: (C, H, W), uint8."""


class Files(Dataset):
    """Image files under the evaluation transform; a file that does not decode yields its error."""

    def __init__(self, paths: list[str], preprocess: Preprocess) -> None:
        self.paths, self.channels = paths, len(preprocess.mean)
        self.transform = evaluation_transform(preprocess)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> tuple[str, Tensor | None, str]:
        """Path, image (C, H, W) and error."""
        try:
            return self.paths[k], self.transform(load(self.paths[k], self.channels)), ""
        except UserError as error:
            return self.paths[k], None, str(error).partition(" does not decode: ")[2]


@torch.inference_mode()
def probabilities(predictor: Predictor, images: list[Tensor], batch_size: int) -> Tensor:
    """The probabilities (N, classes) of N ≤ `batch_size` images (C, H, W), on the predictor's device.

    The images are uint8 under the evaluation transform. The batch is padded to `batch_size`, so that the probabilities
    of an image do not depend on the others.
    """
    x = padded(torch.stack(images), batch_size)
    device, channels_last = predictor.accelerator.device, predictor.recipe.run.channels_last
    x = to_input(x, predictor.metadata.preprocess, device, channels_last)  # (N, C, H, W)
    with predictor.accelerator.autocast():
        logits = predictor.model(x).float()[: len(images)]  # (N, classes)
    return logits.softmax(1)


@torch.inference_mode()
def predict(predictor: Predictor, paths: list[str], topk: int, batch_size: int, workers: int) -> Iterator[Prediction]:
    """The model's prediction for each image, in the paths' order, as they are computed.

    Batches are padded to one size, so that an image's prediction does not depend on the other images.
    """
    loader = DataLoader(
        Files(paths, predictor.metadata.preprocess),
        batch_size=batch_size,
        num_workers=devices.worker_count(workers, predictor.accelerator.device),
        collate_fn=list,
    )
    for rows in loader:
        images = [image for _, image, _ in rows if image is not None]
        tops = iter(())
        if images:
            found = probabilities(predictor, images, batch_size)  # (N, classes)
            highest, classes = found.topk(min(topk, found.shape[1]))  # (N, topk)
            tops = zip(classes.tolist(), highest.tolist(), strict=True)
        for path, image, error in rows:
            top = [] if image is None else list(zip(*next(tops), strict=True))
            yield Prediction(path, top, error, image)
