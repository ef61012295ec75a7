"""A trained model, ready to compute: on this device, in the precision that it was validated in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune import artifact, hardware, recipes, runs
from finetune.archs import Preprocess
from finetune.errors import UserError
from finetune.evaluate import filled
from finetune.recipe import Recipe
from finetune.samples import evaluation_transform, load, to_input


@dataclass(frozen=True)
class Ready:
    """A model on its device."""

    opened: artifact.Model
    recipe: Recipe
    """The run's; of a model folder without its run, the default one."""
    has_run: bool
    accelerator: Accelerator
    precision: str
    """In words."""

    @property
    def classes(self) -> list[str]:
        return self.opened.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.opened.preprocess


def make_ready(run: Path, precision: str) -> Ready:
    """Open a run's or a model's folder. `precision` is that of `--precision`, or `run` for what the run was told.

    Where the run's is fp16 and there is no GPU, it is what the hardware does best.
    """
    opened = artifact.load(run)
    beside = opened.folder.parent / "config.json"
    has_run = opened.folder.name == "model" and beside.is_file()
    recipe = recipes.from_config(runs.read_json(beside)) if has_run else Recipe()
    chosen = recipe.run.precision if precision == "run" else precision
    lacking = precision == "run" and chosen == "fp16" and not torch.accelerator.is_available()
    accelerator, words = hardware.make_accelerator("auto" if lacking else chosen, "none", opened.folder)
    if lacking and accelerator.is_main_process:
        print(f"The run's precision is fp16, which needs a GPU. Here it is {words}.", file=sys.stderr)
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    opened.model.to(accelerator.device, memory_format=layout)
    return Ready(opened, recipe, has_run, accelerator, words)


class Mirrored(nn.Module):
    """Test-time augmentation: the mean of the probabilities of an image and of its mirror image, as logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([self.model(x), self.model(x.flip(-1))]).float()  # (2, N, classes)
        return views.softmax(-1).mean(0).log()  # (N, classes)


class Answer(NamedTuple):
    """What the model says of one image file."""

    path: str
    top: list[tuple[int, float]]
    """Classes and their probabilities, most probable first; empty where the image does not decode."""
    error: str
    image: Tensor | None
    """As the model sees it: (C, H, W), uint8."""


class Files(Dataset):
    """Image files under the evaluation transform; one that does not decode gives its error instead."""

    def __init__(self, paths: list[str], preprocess: Preprocess) -> None:
        self.paths, self.channels = paths, len(preprocess.mean)
        self.transform = evaluation_transform(preprocess)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> tuple[str, Tensor | None, str]:
        try:
            return self.paths[k], self.transform(load(self.paths[k], self.channels)), ""
        except UserError as error:
            return self.paths[k], None, str(error).partition(" does not decode: ")[2]


@torch.inference_mode()
def answers(
    ready: Ready, paths: list[str], topk: int, batch_size: int, workers: int, model: nn.Module
) -> Iterator[Answer]:
    """What the model says of each image, in the paths' order, as they come.

    Batches are filled up to one size, so that an image's answer is the same to the bit whatever else is asked.
    """
    device, channels_last = ready.accelerator.device, ready.recipe.run.channels_last
    loader = DataLoader(
        Files(paths, ready.preprocess),
        batch_size=batch_size,
        num_workers=hardware.worker_count(workers, device),
        collate_fn=list,
    )
    for rows in loader:
        images = [image for _, image, _ in rows if image is not None]
        tops = iter(())
        if images:
            x = to_input(filled(torch.stack(images), batch_size), ready.preprocess, device, channels_last)
            with ready.accelerator.autocast():
                logits = model(x).float()[: len(images)]  # (N, classes)
            probabilities, guesses = logits.softmax(1).topk(min(topk, logits.shape[1]))
            tops = zip(guesses.tolist(), probabilities.tolist(), strict=True)
        for path, image, error in rows:
            top = [] if image is None else list(zip(*next(tops), strict=True))
            yield Answer(path, top, error, image)
