"""What the peers share: the command line, the images of a CSV file, the pretrained network, the result's line.

A peer is run as `python -m benchmarks.peers.NAME --data FILE.csv --model NAME --weights FILE`, and its last line on
stdout is a JSON object: `test_accuracy`, `val_accuracy`, `versions`.
"""

import argparse
import csv
import json
import os
import random
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

SPLITS = ("train", "val", "test")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for all backbones here
CROP = 0.875  # the centre crop's side by the resized image's: 224 by 256
MODELS = ("mobilenet_v2", "squeezenet1_0", "shufflenet_v2_x0_5")  # those that `with_head` knows


def parser(description: str) -> argparse.ArgumentParser:
    """The flags of every peer."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data", type=Path, required=True, help="a .csv file with the columns path, label and split")
    flags.add_argument("--model", choices=MODELS, required=True)
    flags.add_argument("--weights", type=Path, required=True, help="the pretrained weights, with torchvision's keys")
    flags.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="data-loading processes")
    return flags


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


# ---- images ----------------------------------------------------------------------------------------------------------
def read(file: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """The classes, sorted, and (path, label) of each image by split."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    classes = sorted({row["label"] for row in rows})
    number = {name: label for label, name in enumerate(classes)}
    samples: dict[str, list[tuple[Path, int]]] = {name: [] for name in SPLITS}
    for row in rows:
        samples[row["split"]].append((file.parent / row["path"], number[row["label"]]))
    return classes, samples


class Images(Dataset):
    """The images of one split, decoded anew each time."""

    def __init__(self, samples: list[tuple[Path, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        path, label = self.samples[k]
        return self.transform(Image.open(path).convert("RGB")), label


def evaluation_transform(size: int) -> transforms.Compose:
    """Resize the short side, crop the centre, normalise."""
    steps = [transforms.Resize(round(size / CROP)), transforms.CenterCrop(size)]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def evaluation_loaders(samples: dict[str, list], given: argparse.Namespace) -> dict[str, DataLoader]:
    """A loader of each split, in order, with the evaluation transform."""
    transform = evaluation_transform(given.size)
    return {s: DataLoader(Images(found, transform), 64, num_workers=given.workers) for s, found in samples.items()}


# ---- network ---------------------------------------------------------------------------------------------------------
def pretrained(given: argparse.Namespace) -> nn.Module:
    """torchvision's network with the given weights; those of the last layer, which is replaced, are not read."""
    if given.weights.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(given.weights)
    else:
        state = torch.load(given.weights, "cpu", weights_only=True)
    heads = ("fc.", "classifier.")
    model = torchvision.models.get_model(given.model, weights=None)
    body = {name: value for name, value in state.items() if not name.startswith(heads)}
    missing, unexpected = model.load_state_dict(body, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith(heads))]
    assert not wrong, f"{given.weights} does not fit {given.model}: {wrong}"
    return model


def with_head(model: nn.Module, head: Callable[[int], nn.Module]) -> nn.Module:
    """Replace the last layer by `head(features)`, which takes and gives shape (N, features)."""
    if hasattr(model, "fc"):
        model.fc = head(model.fc.in_features)
    elif isinstance(model.classifier[1], nn.Conv2d):  # SqueezeNet: the ReLU behind its head would kill a new one
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model.classifier = nn.Sequential(*pooled, model.classifier[0], head(model.classifier[1].in_channels))
    else:
        model.classifier[1] = head(model.classifier[1].in_features)
    return model


# ---- result ----------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """The fraction of a loader's images that are classified correctly."""
    model.eval()
    place = next(model.parameters()).device
    correct = sum((model(x.to(place)).argmax(1).cpu() == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def report(scores: dict[str, Any], *packages: str) -> None:
    """Print the result's line, with the versions of torch, torchvision and these packages."""
    print(json.dumps({**scores, "versions": {name: version(name) for name in ("torch", "torchvision", *packages)}}))
