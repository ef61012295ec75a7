"""Arrays in an .npz or a folder of .npy: every layout is read, and a wrong array is named."""

import numpy as np
import pytest
import torch

from finetune.config.settings import Images
from finetune.data import readers
from finetune.data.decode import load
from finetune.errors import UserError


def read(path, channels=3, **settings):
    return readers.read(Images(data=str(path), **settings), channels, seed=0)


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
        (lambda h: h.update(y_train=h["y_train"] + 0.5), r"y_train is \(20,\) of float64"),
        (lambda h: h.update(x_train=np.zeros((20, 12, 8, 5), np.uint8)), "have 5 channels: --in-channels 5"),
        (lambda h: h.update(y_train=np.zeros(20, int), y_test=np.zeros(6, int)), "one class only"),
        (lambda h: h.update(x_train=np.array([{}] * 20, dtype=object)), "cannot be read as arrays"),
        (lambda h: h.update(x_train=np.array(5)), r"x_train is \(\) and y_train \(20,\); images are"),
        (lambda h: h.update(x_train=h["x_train"][:0], y_train=h["y_train"][:0]), "x_train has 0 images"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, change, message):
    held = arrays()
    change(held)
    np.savez(tmp_path / "set.npz", **held)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "set.npz")


def test_a_damaged_file_is_named(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays())
    content = (tmp_path / "set.npz").read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive", b""):
        (tmp_path / "set.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"set\.npz cannot be read as arrays"):
            read(tmp_path / "set.npz")


def test_a_test_split_may_lack_a_class(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays() | {"y_test": np.zeros(6, int)})
    assert read(tmp_path / "set.npz").lacking("test") == ["1"]
