"""Entries of the tensor cache are complete and intact, or missing."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data import tensor_cache
from finetune.data.types import Subset


def write(folder, name="a", rows=10, dtype=torch.float32):
    path = folder / f"{name}{tensor_cache.SUFFIX}"
    values = torch.arange(rows * 12, dtype=torch.float32).view(rows, 3, 4).to(dtype)
    writer = tensor_cache.Writer(path, rows, {"model": "resnet18"})
    for part in values.split(4):
        writer.append(part)
    writer.commit()
    return path, values


@pytest.mark.parametrize("dtype", tensor_cache.NAMES)
def test_an_entry_is_read_back(tmp_path, dtype):
    path, values = write(tmp_path, dtype=dtype)
    assert tensor_cache.is_whole(path)
    assert tensor_cache.read(path).dtype == dtype
    assert torch.equal(tensor_cache.read(path), values)
    assert tensor_cache.entries(tmp_path)[0].about["model"] == "resnet18"
    assert [entry.path for entry in tensor_cache.entries(tmp_path)] == [path]


def test_a_damaged_entry_is_not_used_but_deleted(tmp_path):
    path, _ = write(tmp_path)
    raw = path.read_bytes()
    damaged = (
        raw[:-1] + bytes([raw[-1] ^ 1]),  # a value
        raw[:-5],  # cut short
        raw[:20],
        b"",
        raw[:8] + b"x" + raw[9:],
        b"\xff" * len(raw),
    )
    for content in damaged:
        path.write_bytes(content)
        assert not tensor_cache.is_whole(path)
        assert not path.exists()
    path.write_bytes(raw)
    assert tensor_cache.is_whole(path)


def test_an_entry_that_another_run_deletes_while_it_is_opened_is_missing(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    from_file = torch.UntypedStorage.from_file

    def delete_first(name, *rest, **options):
        Path(name).unlink()
        return from_file(name, *rest, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", delete_first)
    assert tensor_cache.entries(tmp_path)[0].about["model"] == "resnet18"
    assert tensor_cache.read(path) is None
    assert not path.exists()


def test_an_entry_does_not_exist_before_it_is_committed(tmp_path):
    path = tmp_path / f"a{tensor_cache.SUFFIX}"
    writer = tensor_cache.Writer(path, 2, {})
    writer.append(torch.zeros(2, 3))
    assert not path.exists()
    assert tensor_cache.read(path) is None
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_entry_makes_room(tmp_path):
    size = write(tmp_path, "first")[0].stat().st_size
    for k, name in enumerate(("first", "second", "third")):
        path = write(tmp_path, name)[0]
        os.utime(path, (1000 + k, 1000 + k))
    assert tensor_cache.is_whole(tmp_path / f"first{tensor_cache.SUFFIX}"), "which makes it the last one used"
    tensor_cache.make_room(tmp_path, size, 3 * size)
    assert [entry.path.stem for entry in tensor_cache.entries(tmp_path)] == ["third", "first"]
    assert tensor_cache.clear(tmp_path) == 2 * size
    assert tensor_cache.entries(tmp_path) == []


def test_the_limit_is_cache_gb_or_half_of_the_free_space(tmp_path):
    assert tensor_cache.limit(tmp_path / "none" / "yet", 0.5) == 500_000_000
    free = shutil.disk_usage(tmp_path).free
    assert tensor_cache.limit(tmp_path / "none" / "yet", None) == pytest.approx(free / 2, rel=0.1)
    assert tensor_cache.limit(tmp_path, 0) == 0


def test_fingerprints_of_files_change_with_order_time_and_size(tmp_path):
    files = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for file in files:
        Path(file).write_bytes(b"12")
    first = tensor_cache.fingerprint(files)
    assert tensor_cache.fingerprint(list(files)) == first
    assert tensor_cache.fingerprint(files[::-1]) != first
    os.utime(files[0], (1, 1))
    second = tensor_cache.fingerprint(files)
    assert second != first
    Path(files[1]).write_bytes(b"123")
    assert tensor_cache.fingerprint(files) != second


def test_fingerprints_of_arrays_change_with_content_or_file_and_positions(tmp_path):
    held = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    other = held.copy()
    other[4, 2, 3] += 1
    assert tensor_cache.fingerprint(held) == tensor_cache.fingerprint(held.copy()) != tensor_cache.fingerprint(other)
    assert tensor_cache.fingerprint(Subset(held, [0, 1])) != tensor_cache.fingerprint(Subset(held, [0, 2]))
    np.save(tmp_path / "x.npy", held)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    first = tensor_cache.fingerprint(mapped)
    assert tensor_cache.fingerprint(np.load(tmp_path / "x.npy", mmap_mode="r")) == first
    os.utime(tmp_path / "x.npy", (1, 1))
    assert tensor_cache.fingerprint(np.load(tmp_path / "x.npy", mmap_mode="r")) != first
