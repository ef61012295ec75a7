"""torchvision's classification sets by name, downloaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config.settings import Images
from finetune.data.types import ImageSet, Split, with_validation
from finetune.errors import UserError
from finetune.runtime import files

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_ONE: dict[str, dict[str, Any]] = {"train": {}}

# Name: torchvision's class, and the arguments for each of its splits. Without a validation split, part of the training
# images becomes it.
SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "caltech101": ("Caltech101", _ONE),
    "caltech256": ("Caltech256", _ONE),
    "cifar10": ("CIFAR10", _FLAG),
    "cifar100": ("CIFAR100", _FLAG),
    "country211": ("Country211", {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}),
    "dtd": ("DTD", _THREE),
    "emnist": ("EMNIST", {name: {"split": "balanced", **flag} for name, flag in _FLAG.items()}),
    "eurosat": ("EuroSAT", _ONE),
    "fashion_mnist": ("FashionMNIST", _FLAG),
    "fer2013": ("FER2013", _ONE),
    "fgvc_aircraft": ("FGVCAircraft", _THREE),
    "flowers102": ("Flowers102", _THREE),
    "food101": ("Food101", _TWO),
    "gtsrb": ("GTSRB", _TWO),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
    "kmnist": ("KMNIST", _FLAG),
    "mnist": ("MNIST", _FLAG),
    "oxford_iiit_pet": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "pcam": ("PCAM", _THREE),
    "qmnist": ("QMNIST", _FLAG),
    "rendered_sst2": ("RenderedSST2", _THREE),
    "semeion": ("SEMEION", _ONE),
    "stanford_cars": ("StanfordCars", _TWO),
    "stl10": ("STL10", _TWO),
    "sun397": ("SUN397", _ONE),
    "svhn": ("SVHN", _TWO),
    "usps": ("USPS", _FLAG),
}
# Sets without splits that have a customary one: the fraction to validate on, and the seed of torch's generator.
CUSTOMARY_SPLITS = {"caltech101": (0.2, 42)}


class TorchvisionImages(Sequence):
    """The images of a torchvision dataset, without their labels."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, k: int) -> Any:
        return self.dataset[k][0]


def accepts(data: str) -> bool:
    """Whether `--data` is the name of a set."""
    return data.lower() in SETS


def read(images: Images, in_channels: int, seed: int) -> ImageSet:
    """Read a set from `--data-root`. The first process downloads it if it is missing, and the others wait.

    Raises `UserError` where it can be neither read nor downloaded.
    """
    import torch
    from torchvision import datasets

    name, root = images.data.lower(), files.expanded(images.data_root)
    kind, arguments = SETS[name]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with files.locked(root / f".{name}.lock"):
            held = {split: _open(getattr(datasets, kind), root, **given) for split, given in arguments.items()}
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--data {name} cannot be read from or downloaded to {root} ({error}). "
            f"Put torchvision's files there yourself, or name another folder: --data-root PATH"
        ) from error
    labels = {split: _labels(dataset) for split, dataset in held.items()}
    classes = _classes(held["train"], labels["train"])
    lowest = min(labels["train"])  # a few sets count from one
    splits = {s: Split(TorchvisionImages(d), [k - lowest for k in labels[s]]) for s, d in held.items()}
    if name in CUSTOMARY_SPLITS:
        fraction, fixed_seed = CUSTOMARY_SPLITS[name]
        whole = splits["train"]
        order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(fixed_seed)).tolist()
        cut = len(order) - int(fraction * len(order))
        splits |= {"train": whole.subset(order[:cut]), "val": whole.subset(order[cut:])}
    return ImageSet(classes, with_validation(splits, classes, images.val_fraction, seed))


def _open(kind: Any, root: Path, **given: Any) -> Any:
    """The dataset on disk; downloaded if it is missing."""
    try:
        return kind(root=str(root), **given)
    except (RuntimeError, FileNotFoundError):
        return kind(root=str(root), download=True, **given)


def _labels(dataset: Any) -> list[int]:
    # `_labels` and `_samples` are private, but without them every image of some sets is decoded for its label.
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, name):
            labels = np.asarray(getattr(dataset, name))
            return (labels[:, 0] if labels.ndim == 2 else labels).tolist()  # QMNIST has rows that begin with the class
    if hasattr(dataset, "_samples"):
        return [int(sample[1]) for sample in dataset._samples]
    return [int(dataset[k][1]) for k in range(len(dataset))]


def _classes(dataset: Any, labels: list[int]) -> list[str]:
    for name in ("classes", "categories"):
        names = getattr(dataset, name, None)
        if names and len(names) > max(labels) - min(labels):
            return [words if isinstance(words, str) else " ".join(words) for words in names]
    return [str(label) for label in range(min(labels), max(labels) + 1)]
