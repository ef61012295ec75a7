"""torchvision's classification sets by name, downloaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.imagesets import ImageSet, Split, grouped, stratified

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_ONE: dict[str, dict[str, Any]] = {"train": {}}

# Name: torchvision's class, and the arguments that give each of its own splits. Without one to validate on, a part of
# the training images does.
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
# A random split that its users share: 80 to 20 by torch's generator at seed 42.
SHARED_SPLITS = {"caltech101": (0.2, 42)}


class Part(Sequence):
    """Images of a torchvision dataset, by position."""

    def __init__(self, dataset: Any, positions: Sequence[int]) -> None:
        self.dataset, self.positions = dataset, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, k: int) -> Any:
        return self.dataset[self.positions[k]][0]


def read(name: str, root: Path, fraction: float, seed: int) -> ImageSet:
    """Read a set, downloading it into `root` where it is not there yet: one process at a time, so once."""
    import torch
    from filelock import FileLock
    from torchvision import datasets

    kind, arguments = SETS[name]
    root = root.expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            held = {split: _open(getattr(datasets, kind), root, **given) for split, given in arguments.items()}
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--data {name} cannot be read from or downloaded to {root} ({error}). "
            f"Put torchvision's files there yourself, or name another place: --data-root PATH"
        ) from error
    labels = {split: _labels(dataset) for split, dataset in held.items()}
    classes = _classes(held["train"], labels["train"])
    lowest = min(labels["train"])  # a few sets count from one
    splits = {s: Split(Part(d, range(len(d))), [k - lowest for k in labels[s]]) for s, d in held.items()}
    if "val" not in splits:
        whole = splits["train"]
        if name in SHARED_SPLITS:
            share, fixed = SHARED_SPLITS[name]
            order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(fixed)).tolist()
            cut = len(order) - int(share * len(order))
            parts = order[:cut], order[cut:]
        else:
            parts = stratified(grouped(whole.labels, classes), fraction, seed)
        for split, positions in zip(("train", "val"), parts, strict=True):
            splits[split] = Split(Part(held["train"], positions), [whole.labels[k] for k in positions])
    return ImageSet(classes, splits)


def _open(kind: Any, root: Path, **given: Any) -> Any:
    """The dataset from what is on disk, else downloaded."""
    try:
        return kind(root=str(root), **given)
    except (RuntimeError, FileNotFoundError):
        return kind(root=str(root), download=True, **given)


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, name):
            return [int(label) for label in getattr(dataset, name)]
    if hasattr(dataset, "_samples"):
        return [int(sample[1]) for sample in dataset._samples]
    return [int(dataset[k][1]) for k in range(len(dataset))]


def _classes(dataset: Any, labels: list[int]) -> list[str]:
    for name in ("classes", "categories"):
        given = getattr(dataset, name, None)
        if given and len(given) > max(labels) - min(labels):
            return [name if isinstance(name, str) else " ".join(name) for name in given]
    return [str(label) for label in range(min(labels), max(labels) + 1)]
