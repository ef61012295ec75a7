"""Checkpoints are whole or not there, and damage of any kind is found before anything is touched."""

import contextlib
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import reset_accelerate
from torch import nn

from finetune import checkpoint, durable
from finetune.errors import UserError

ABOUT = {
    "settings": {"lr": 1.0},
    "preprocess": {"resize": 9, "crop": 8, "interpolation": "bilinear", "mean": [0.5], "std": [0.5]},
}


@pytest.fixture
def parts():
    """A net with a frozen layer, an optimizer that has a state, and what makes `Checkpoints` of them."""
    reset_accelerate()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1:].parameters(), fused=True)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()

    def make(folder: Path, keep: int = 2) -> checkpoint.Checkpoints:
        frozen = ["0.weight", "0.bias"]
        made = checkpoint.Checkpoints(folder, keep, Accelerator(cpu=True), model, optimizer, None, frozen, ABOUT)
        save = made.save
        made.save = lambda progress, optional=False: (save(progress, optional), made.finish())
        return made

    return model, optimizer, make


@pytest.fixture
def two(parts, tmp_path) -> Path:
    """A folder with two checkpoints, after updates 5 and 10."""
    *_, make = parts
    checkpoints = make(tmp_path)
    for done in (5, 10):
        checkpoints.keep_best()
        checkpoints.save(checkpoint.Progress(epoch=0, done=done, sums=[1.5, 2.0]))
    return tmp_path


def test_nothing_that_comes_back_hangs_on_the_files(parts, two):
    model, optimizer, make = parts
    found = checkpoint.find(two)
    checkpoints = make(two)
    checkpoints.load(found)
    moments = [value for held in optimizer.state.values() for value in held.values()]
    held = [*model.state_dict().values(), *moments, *checkpoints.best.values()]
    before = [value.clone() for value in held]
    files = list(found.folder.glob("*.safetensors"))
    assert len(files) == 4
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    assert all(map(torch.equal, held, before))


def test_everything_comes_back_as_it_was(parts, two):
    model, optimizer, make = parts
    found = checkpoint.find(two)
    assert (found.folder.name, found.progress.done, found.damaged) == ("0000-00000010", 10, {})
    assert found.preprocess.mean == (0.5,)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    moments = [{key: value.clone() for key, value in held.items()} for held in optimizer.state.values()]
    with torch.no_grad():
        for tensor in [*model.state_dict().values(), *[t for held in optimizer.state.values() for t in held.values()]]:
            tensor.add_(1)
    progress = make(two).load(found)
    assert progress.sums == [1.5, 2.0]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert len(moments) == 4
    for held, before in zip(optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(held[key], value) for key, value in before.items())


def test_optional_ones_take_a_tenth_of_the_time_at_most(parts, tmp_path):
    *_, make = parts
    checkpoints = make(tmp_path)
    seen = []
    for done, optional, took, ago in (
        (1, True, 0.0, 0.0),  # the first one
        (2, True, 1.0, 9.0),
        (3, True, 1.0, 11.0),
        (4, False, 1.0, 0.0),
        (5, True, math.inf, 1e9),  # the last is not written yet
    ):
        checkpoints.began, checkpoints.took = time.monotonic() - ago, took
        checkpoints.save(checkpoint.Progress(done=done), optional)
        seen.append((tmp_path / f"0000-{done:08}").exists())
    assert seen == [True, False, True, True, False]


def test_sha256sum_reads_the_checksums(two):
    for folder in two.iterdir():
        done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False)
        assert done.returncode == 0


def test_only_the_newest_are_kept_and_neighbours_share_no_file(parts, tmp_path):
    *_, make = parts
    checkpoints = make(tmp_path, keep=3)
    for done in range(1, 7):
        checkpoints.save(checkpoint.Progress(done=done))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0000-00000004", "0000-00000005", "0000-00000006"]
    inodes = [{file.stat().st_ino for file in (tmp_path / name).iterdir()} for name in names]
    assert not inodes[0] & inodes[1]
    assert not inodes[1] & inodes[2]
    assert len(inodes[0] & inodes[2]) == 1, "the frozen part is linked"
    only = make(tmp_path / "one", keep=1)
    for done in (1, 2):
        only.save(checkpoint.Progress(done=done))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["0000-00000002"]
    assert durable.damage(tmp_path / "one" / "0000-00000002") is None


FILES = (
    "best.safetensors",
    "frozen.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "SHA256SUMS",
)


@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_used(two, name):
    newest, seen = two / "0000-00000010", 0
    assert sorted(path.name for path in newest.iterdir()) == sorted(FILES)
    whole = (newest / name).read_bytes()
    draw = random.Random(0)
    places = {0, 1, len(whole) // 2, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))}
    damaged = [whole[:place] for place in places]
    damaged += [whole[:p] + bytes([whole[p] ^ 1 << draw.randrange(8)]) + whole[p + 1 :] for p in places]
    damaged += [None, whole + b"x"]
    for content in damaged:
        (newest / name).unlink(missing_ok=True)
        if content is not None:
            (newest / name).write_bytes(content)
        found = checkpoint.find(two)
        assert found.folder.name == "0000-00000005", f"{name}: {content}"
        assert list(found.damaged) == [newest]
        seen += 1
    assert seen >= 42
    (newest / name).write_bytes(whole)
    assert checkpoint.find(two).folder == newest
    (newest / "stranger").touch()
    assert checkpoint.find(two).damaged == {newest: "stranger is not in SHA256SUMS"}


def test_none_whole_and_a_newer_format_are_refused_by_name(two):
    for path in two.iterdir():
        (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"0000-00000010: model.safetensors is missing; 0000-00000005: model"):
        checkpoint.find(two)
    shutil.rmtree(two)
    assert checkpoint.find(two) is None


def test_a_checkpoint_of_a_newer_version_is_refused(parts, tmp_path, monkeypatch):
    *_, make = parts
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    make(tmp_path).save(checkpoint.Progress(done=1))
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    with pytest.raises(UserError, match="newer version"):
        checkpoint.find(tmp_path)


def test_what_was_left_half_written_is_no_checkpoint_and_is_replaced(two, parts):
    *_, make = parts
    (two / ".0000-00000015").mkdir()
    (two / ".0000-00000015" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.find(two).folder.name == "0000-00000010"
    make(two).save(checkpoint.Progress(done=15))
    assert checkpoint.find(two).folder.name == "0000-00000015"
    assert not list(two.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """Write zeros until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_ends_the_run_with_one_message_and_the_last_checkpoint_whole(train, small_disk, capsys):
    output = small_disk / "run"
    flags = [
        "--recipe",
        "feature_extractor",
        "--weights",
        "starter",
        "--keep-checkpoints",
        "99",
        "--output",
        str(output),
    ]
    code, _ = train(*flags, "--epochs", "999")
    assert code == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error or "the disk is full" in error
    assert "Traceback" not in error
    newest = checkpoint.find(output / "checkpoints")
    assert newest.damaged == {}
    assert newest.progress.epoch >= 1
    fill(small_disk / "other")
    code, _ = train(*flags, "--epochs", str(newest.progress.epoch + 1), "--resume")
    assert code == 2, "still full"
    assert checkpoint.find(output / "checkpoints").folder == newest.folder
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    code, _ = train(*flags, "--epochs", str(newest.progress.epoch + 1), "--resume")
    assert code == 0
