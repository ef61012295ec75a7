"""Entries of the store are whole and right, or not there."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import arrays, store


def write(folder, name="a", rows=10, dtype=torch.float32):
    path = folder / f"{name}{store.SUFFIX}"
    values = torch.arange(rows * 12, dtype=torch.float32).view(rows, 3, 4).to(dtype)
    writer = store.Writer(path, rows, {"model": "a net"})
    for part in values.split(4):
        writer.append(part)
    writer.commit()
    return path, values


@pytest.mark.parametrize("dtype", store.NAMES)
def test_what_was_written_is_read(tmp_path, dtype):
    path, values = write(tmp_path, dtype=dtype)
    assert store.whole(path)
    assert store.read(path).dtype == dtype
    assert torch.equal(store.read(path), values)
    assert store.entries(tmp_path)[0].about["model"] == "a net"
    assert [entry.path for entry in store.entries(tmp_path)] == [path]


def test_a_damaged_entry_is_not_used_but_removed(tmp_path):
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
        assert not store.whole(path)
    path.write_bytes(raw)
    assert store.whole(path)


def test_what_is_not_committed_is_not_there(tmp_path):
    path = tmp_path / f"a{store.SUFFIX}"
    writer = store.Writer(path, 2, {})
    writer.append(torch.zeros(2, 3))
    assert not path.exists()
    assert store.read(path) is None
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_makes_room(tmp_path):
    size = write(tmp_path, "first")[0].stat().st_size
    for k, name in enumerate(("first", "second", "third")):
        path = write(tmp_path, name)[0]
        os.utime(path, (1000 + k, 1000 + k))
    assert store.whole(tmp_path / f"first{store.SUFFIX}"), "and is now the last one used"
    store.make_room(tmp_path, size, 3 * size)
    assert [entry.path.stem for entry in store.entries(tmp_path)] == ["third", "first"]
    assert store.clear(tmp_path) == 2 * size
    assert store.entries(tmp_path) == []


def test_the_limit_is_what_is_said_or_half_of_what_is_free(tmp_path):
    assert store.limit(tmp_path / "none" / "yet", 0.5) == 500_000_000
    assert store.limit(tmp_path / "none" / "yet", None) > 0
    assert store.limit(tmp_path, 0) == 0


def test_images_are_told_apart_by_path_size_and_time(tmp_path):
    files = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for file in files:
        Path(file).write_bytes(b"12")
    first = store.fingerprint(files)
    assert store.fingerprint(list(files)) == first
    assert store.fingerprint(files[::-1]) != first
    os.utime(files[0], (1, 1))
    second = store.fingerprint(files)
    assert second != first
    Path(files[1]).write_bytes(b"123")
    assert store.fingerprint(files) != second


def test_arrays_are_told_apart_by_file_or_by_content_and_positions(tmp_path):
    held = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    other = held.copy()
    other[4, 2, 3] += 1
    assert store.fingerprint(held) == store.fingerprint(held.copy()) != store.fingerprint(other)
    assert store.fingerprint(arrays.Part(held, [0, 1])) != store.fingerprint(arrays.Part(held, [0, 2]))
    np.save(tmp_path / "x.npy", held)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    first = store.fingerprint(mapped)
    assert store.fingerprint(np.load(tmp_path / "x.npy", mmap_mode="r")) == first
    os.utime(tmp_path / "x.npy", (1, 1))
    assert store.fingerprint(np.load(tmp_path / "x.npy", mmap_mode="r")) != first


def test_the_command_lists_and_clears(tmp_path, capsys):
    from finetune.__main__ import main

    write(tmp_path, "one")
    (tmp_path / f"two{store.SUFFIX}.host-1").write_bytes(b"12")
    assert main(["cache", "--cache-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "a net" in shown
    assert "unfinished" in shown
    assert "2 files" in shown
    assert main(["cache", "clear", "--cache-dir", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []
