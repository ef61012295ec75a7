"""torchvision's sets by name are downloaded once and split."""

import inspect
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from finetune.config.settings import Images
from finetune.data import readers
from finetune.data.decode import load
from finetune.data.readers import torchvision_sets
from finetune.errors import UserError


def read(path, channels=3, **settings):
    return readers.read(Images(data=str(path), **settings), channels, seed=0)


def test_every_named_set_is_torchvisions():
    assert len(torchvision_sets.SETS) >= 27
    for kind, _ in torchvision_sets.SETS.values():
        assert hasattr(torchvision.datasets, kind), kind


def test_labels_are_found_without_decoding_images():
    """Where torchvision's classes hold them, some in private attributes."""
    without = []
    for name, (kind, _) in torchvision_sets.SETS.items():
        mro = getattr(torchvision.datasets, kind).__mro__
        source = "".join(inspect.getsource(cls) for cls in mro if cls.__module__.startswith("torchvision"))
        if not re.search(r"self\.(targets|labels|_labels|y|_samples)\b[^=\n]* = ", source):
            without.append(name)
    assert without == ["pcam"], "which reads no image files"


def test_labels_of_every_form_are_integers():
    forms = {
        "targets": torch.tensor([[2, 9, 9], [0, 8, 8]]),  # QMNIST's rows begin with the class
        "labels": np.array([2, 0], np.uint8),
        "_labels": [2, 0],
        "y": (2, 0),
        "_samples": [("a.png", 2), ("b.png", 0)],
    }
    for name, values in forms.items():
        found = torchvision_sets._labels(SimpleNamespace(**{name: values}))
        assert found == [2, 0], name
        assert {type(label) for label in found} == {int}, name
    assert torchvision_sets._labels([("image", 2), ("image", 0)]) == [2, 0]


class Toy:
    """Stands for a torchvision set that needs a download."""

    downloads = 0

    def __init__(self, root, train=True, download=False):
        if not download and not Toy.downloads:
            raise RuntimeError("Dataset not found")
        Toy.downloads += download
        self.targets = [k % 3 for k in range(30 if train else 9)]
        self.classes = ["a", "b", "c"]

    def __getitem__(self, k):
        return Image.new("L", (6, 5), 10 * k), self.targets[k]

    def __len__(self):
        return len(self.targets)


def test_a_named_set_is_downloaded_once_and_split(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Toy)
    monkeypatch.setattr(Toy, "downloads", 0)
    found = read("cifar10", data_root=tmp_path)
    assert Toy.downloads == 1
    assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 24, "val": 6, "test": 9}
    assert load(found.splits["test"].items[2], 3)[:, 0, 0].tolist() == [20, 20, 20]
    assert read("cifar10", data_root=tmp_path).splits["val"].labels == found.splits["val"].labels
    assert Toy.downloads == 1


def test_a_set_that_cannot_be_downloaded_is_named(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(UserError, match=r"--data cifar10 cannot be read .*no network.*--data-root"):
        read("cifar10", data_root=tmp_path)


def test_caltech101_has_the_split_that_its_users_share(monkeypatch, tmp_path):
    class Caltech:
        categories = ("a", "b")

        def __init__(self, root, download=False):
            self.y = [k % 2 for k in range(101)]

        def __len__(self):
            return 101

    monkeypatch.setattr(torchvision.datasets, "Caltech101", Caltech)
    splits = read("caltech101", data_root=tmp_path).splits
    whole = torch.utils.data.random_split(range(101), [81, 20], generator=torch.Generator().manual_seed(42))
    assert list(splits["val"].items.positions) == list(whole[1].indices)
