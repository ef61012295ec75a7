"""Arrays, CSV files and named sets become the same image sets that folders do."""

import csv
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from finetune import imagesets, named
from finetune.errors import UserError
from finetune.recipe import Images
from finetune.samples import load


def read(path, channels=3, **settings):
    return imagesets.read(Images(data=str(path), **settings), channels, seed=0)


def arrays(shape=(12, 8), dtype=np.uint8, count=20, labels=None):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    y = np.arange(count) % 2 if labels is None else labels
    return {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}


@pytest.mark.parametrize("shape", [(12, 8), (1, 12, 8), (12, 8, 1), (12, 8, 3), (3, 12, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_every_layout_are_the_same_images(tmp_path, shape, dtype):
    held = arrays(shape, dtype)
    np.savez(tmp_path / "set.npz", **held)
    (tmp_path / "folder").mkdir()
    for name, array in held.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for place in (tmp_path / "set.npz", tmp_path / "folder"):
        found = read(place)
        assert found.classes == ["0", "1"]
        assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 16, "val": 4, "test": 6}
        image = load(found.splits["test"].items[3], 3)
        assert image.shape == (3, 12, 8)
        expected = torch.from_numpy(held["x_train"][3]).squeeze()
        expected = expected.movedim(-1, 0) if shape[-1] == 3 else expected
        assert torch.equal(image, expected.expand(3, 12, 8) if expected.ndim == 2 else expected)
        assert image.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)


def test_float_images_train_like_their_bytes(train, tmp_path):
    results = []
    for dtype in (np.uint8, np.float32):
        np.savez(tmp_path / f"{dtype.__name__}.npz", **arrays((40, 40), dtype))
        code, output = train("--in-channels", "1", data=tmp_path / f"{dtype.__name__}.npz")
        assert code == 0
        results.append((output / "metrics.jsonl").read_text().split('"train_loss": ')[1][:5])
    assert results[0] == results[1]


def test_labels_may_be_any_integers_or_strings(tmp_path):
    for labels, names in (([7, -3] * 10, ["-3", "7"]), (["cat", "ant"] * 10, ["ant", "cat"])):
        np.savez(tmp_path / "set.npz", **arrays(labels=np.array(labels)))
        found = read(tmp_path / "set.npz")
        assert found.classes == names
        assert found.splits["test"].labels == [1, 0] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(y_train=h["y_train"][:5]), "x_train has 20 images and y_train 5 labels"),
        (lambda h: h.update(y_test=np.array([0, 1, 2, 3, 0, 1])), "y_test has labels that y_train lacks: 2, 3"),
        (lambda h: h.pop("y_test"), "has x_test but no y_test"),
        (lambda h: h.pop("y_train"), "it needs x_train and y_train"),
        (lambda h: h.update(x_train=h["x_train"].astype(np.float32)), r"floats must lie in \[0, 1\]"),
        (lambda h: h.update(x_train=np.full((20, 12, 8), np.nan)), r"values in \[nan, nan\]"),
        (lambda h: h.update(x_train=h["x_train"].astype(np.int64)), "x_train is int64"),
        (lambda h: h.update(y_train=h["y_train"] + 0.5), "y_train is float64"),
        (lambda h: h.update(x_train=np.zeros((20, 12, 8, 5), np.uint8)), "have 5 channels: --in-channels 5"),
        (lambda h: h.update(y_train=np.zeros(20, int), y_test=np.zeros(6, int)), "one class only"),
        (lambda h: h.update(x_train=np.array([{}] * 20, dtype=object)), "cannot be read as arrays"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, change, message):
    held = arrays()
    change(held)
    np.savez(tmp_path / "set.npz", **held)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "set.npz")


def test_channels_that_only_arrays_have_are_refused_for_files(train, capsys, image_folder, tmp_path):
    assert train("--in-channels", "4")[0] == 2
    assert "--in-channels 4: the images of --data" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == []
    for path in (table(tmp_path, image_folder, [("path", "label")]), "cifar10"):
        with pytest.raises(UserError, match=r"are grey \(1\) or colour \(3\)"):
            read(path, channels=2)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "wrong.npz", channels=4)


def table(folder, image_folder, rows):
    shutil.copytree(image_folder, folder / "images", dirs_exist_ok=True)
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "set.csv"


def test_a_csv_file_gives_the_splits_it_names_or_is_split(image_folder, tmp_path):
    rows = [
        (str(path.relative_to(image_folder.parent)).replace(image_folder.name, "images"), path.parent.name, split)
        for split in ("train", "val")
        for path in sorted((image_folder / split).rglob("*.jpg"))
    ]
    found = read(table(tmp_path, image_folder, [("path", "label", "split"), *rows]))
    assert found.classes == ["blue", "green", "red"]
    assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 21, "val": 9}
    found = read(table(tmp_path, image_folder, [("path", "label"), *(row[:2] for row in rows)]))
    assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 24, "val": 6}


def test_every_reader_lets_a_test_split_lack_a_class(image_folder, tmp_path):
    paths = [(f"images/{path.relative_to(image_folder)}", path.parent.name) for path in image_folder.rglob("*.jpg")]
    rows = [(path, label, "test" if "val" in path else "train") for path, label in sorted(paths)]
    rows = [row for row in rows if row[1:] != ("red", "test")]
    found = read(table(tmp_path, image_folder, [("path", "label", "split"), *rows]))
    assert found.lacking("test") == ["red"]
    np.savez(tmp_path / "set.npz", **arrays() | {"y_test": np.zeros(6, int)})
    assert read(tmp_path / "set.npz").lacking("test") == ["1"]


def test_csv_rows_that_point_nowhere_are_listed(image_folder, tmp_path):
    rows = [("path", "label"), *((f"images/{k}.jpg", "a") for k in range(7))]
    with pytest.raises(UserError, match=r"7 of 7 paths point nowhere: images/0.jpg, .*images/4.jpg$"):
        read(table(tmp_path, image_folder, rows))
    with pytest.raises(UserError, match="columns path and label"):
        read(table(tmp_path, image_folder, [("file", "class"), ("a", "b")]))


def test_every_named_set_is_torchvisions():
    assert len(named.SETS) >= 27
    for kind, _ in named.SETS.values():
        assert hasattr(torchvision.datasets, kind), kind


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
