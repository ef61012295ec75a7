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
from support import reset_accelerate
from torch import nn

from finetune.config.settings import Net, Rate
from finetune.errors import UserError
from finetune.models import architectures
from finetune.models.architectures import Preprocess
from finetune.models.metadata import Metadata
from finetune.models.network import Network
from finetune.runtime import files
from finetune.training import checkpoint, ema, saved_checkpoints
from finetune.training.state import State

PREPROCESS = Preprocess(9, 8, "bilinear", (0.5,), (0.5,))
SETTINGS = {"lr": 1.0, "epochs": 3, "versions": {}, "threads": 1, "image_sizes": ""}
RECORD = {
    **{"epoch": 1, "step": 0, "lr": {"head": 1e-3}, "train_loss": 0.7, "train_accuracy": 0.5, "val_loss": 0.6},
    **{"val_accuracy": 0.5, "images_per_second": 9.0, "seconds": 2.0},
}
ABOUT = {"settings": SETTINGS, "preprocess": vars(PREPROCESS)}


def metadata_of(record: dict) -> Metadata:
    return Metadata(Net(), ["a", "b"], PREPROCESS, record)


def state_at(step: int, epoch: int = 0, sums: tuple[float, float, float] = (1.5, 2.0, 3.0)) -> State:
    return State(torch.tensor(sums, dtype=torch.float64), epoch, step)


@pytest.fixture
def parts():
    """A network with a frozen layer, an optimizer that has a state, and what makes `Checkpoints` of them."""
    reset_accelerate()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    rates, family = [None, Rate(1.0), Rate(1.0)], architectures.find("resnet18")
    network = Network(model, PREPROCESS, [["0"], ["1"], ["2"]], rates, family, ema.make_average(model, 0.9))
    network.set_phase(epoch=0)
    optimizer = torch.optim.AdamW(model[1:].parameters(), fused=True)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    for _ in range(3):
        ema.update(network.average, model)

    def make(folder: Path, keep: int = 2) -> checkpoint.Checkpoints:
        accelerator = Accelerator(cpu=True)
        made = checkpoint.Checkpoints(folder, keep, accelerator, network, optimizer, ABOUT, metadata_of)
        made.folder, made.model_folder = folder, folder.with_name("model")
        save = made.save
        made.save = lambda state, optional=False: (save(state, optional), made.finish())
        return made

    return network, optimizer, make


@pytest.fixture
def two(parts, tmp_path) -> Path:
    """A folder with two checkpoints, after steps 5 and 10."""
    *_, make = parts
    checkpoints = make(tmp_path)
    for step in (5, 10):
        checkpoints.keep_best({})
        checkpoints.save(state_at(step))
    return tmp_path


def test_a_head_that_was_solved_after_a_stop_at_the_start_is_saved(parts, tmp_path):
    """Both checkpoints have the name of epoch 0 and step 0."""
    checkpoints = parts[2](tmp_path / "checkpoints")
    state = state_at(0)
    checkpoints.save(state)
    assert saved_checkpoints.find(checkpoints.folder).state["history"] == []
    state.add(RECORD | {"epoch": 0, "l2": 0.1}, improved=True)
    for _ in range(2):
        checkpoints.save(state)
        found = saved_checkpoints.find(checkpoints.folder)
        assert [record["l2"] for record in found.state["history"]] == [0.1]
    assert len(saved_checkpoints.names(checkpoints.folder)) == 1


def tensors_of(network: Network, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All that a checkpoint restores in place."""
    moments = [value for held in optimizer.state.values() for value in held.values()]
    return [*network.model.state_dict().values(), *network.average.state_dict().values(), *moments]


def test_nothing_that_was_loaded_depends_on_the_files(parts, two):
    network, optimizer, make = parts
    found = saved_checkpoints.find(two)
    checkpoints = make(two)
    checkpoints.load(found)
    held = [*tensors_of(network, optimizer), *checkpoints.best.values()]
    before = [value.clone() for value in held]
    paths = list(found.folder.glob("*.safetensors"))
    assert len(paths) == 5
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))
    assert all(map(torch.equal, held, before))


def test_everything_comes_back_as_it_was(parts, two):
    network, optimizer, make = parts
    found = saved_checkpoints.find(two)
    assert (found.folder.name, found.state["step"], found.damaged) == ("0000-00000010", 10, {})
    assert (found.settings, found.preprocess) == (SETTINGS, PREPROCESS)
    names = [*network.model.state_dict(), *network.average.state_dict()]
    before = [value.clone() for value in tensors_of(network, optimizer)]
    assert len(before) == len(names) + 4 * 3, "AdamW holds three tensors for each of the four parameters"
    with torch.no_grad():
        for tensor in tensors_of(network, optimizer):
            tensor.add_(1)
    optimizer.param_groups[0]["lr"] = 9.0
    state = make(two).load(found)
    assert (state.step, state.sums.tolist()) == (10, [1.5, 2.0, 3.0])
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert all(map(torch.equal, tensors_of(network, optimizer), before))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_sums_of_another_number_of_processes_are_taken_over_by_the_main_one(parts, two, processes):
    *_, make = parts
    found, sums = saved_checkpoints.find(two), []
    found.saved["sums"] = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
    for rank in range(processes):
        checkpoints = make(two)
        here = {"num_processes": processes, "process_index": rank, "is_main_process": rank == 0, "scaler": None}
        checkpoints.accelerator = type("Rank", (), {**here, "device": torch.device("cpu")})()
        sums.append(checkpoints.load(found).sums)
    expected = {1: [[11, 22, 33]], 2: [[1, 2, 3], [10, 20, 30]], 3: [[11, 22, 33], [0, 0, 0], [0, 0, 0]]}
    assert [own.tolist() for own in sums] == expected[processes]
    assert all(own.dtype == torch.float64 for own in sums)


def test_optional_ones_take_a_tenth_of_the_time_at_most(parts, tmp_path):
    *_, make = parts
    checkpoints = make(tmp_path)
    seen = []
    for step, optional, took, ago in (
        (1, True, 0.0, 0.0),  # the first one
        (2, True, 1.0, 9.0),
        (3, True, 1.0, 11.0),
        (4, False, 1.0, 0.0),
        (5, True, math.inf, 1e9),  # the last is not written yet
    ):
        checkpoints.started, checkpoints.took = time.monotonic() - ago, took
        checkpoints.save(state_at(step), optional)
        seen.append((tmp_path / f"0000-{step:08}").exists())
    assert seen == [True, False, True, True, False]


def test_sha256sum_reads_the_checksums(two):
    folders = list(two.iterdir())
    assert len(folders) == 2
    for folder in folders:
        checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False)
        assert checked.returncode == 0


def test_only_the_newest_are_kept_and_neighbours_share_no_file(parts, tmp_path):
    *_, make = parts
    checkpoints = make(tmp_path, keep=3)
    for step in range(1, 7):
        checkpoints.save(state_at(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0000-00000004", "0000-00000005", "0000-00000006"]
    inodes = [{file.stat().st_ino for file in (tmp_path / name).iterdir()} for name in names]
    assert not inodes[0] & inodes[1]
    assert not inodes[1] & inodes[2]
    assert len(inodes[0] & inodes[2]) == 1, "the frozen part is linked"
    only = make(tmp_path / "one", keep=1)
    for step in (1, 2):
        only.save(state_at(step))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["0000-00000002"]
    assert files.damage(tmp_path / "one" / "0000-00000002") is None


FILES = (
    "average.safetensors",
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
    offsets = {0, 1, len(whole) // 2, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))}
    damaged = [whole[:offset] for offset in offsets]
    damaged += [whole[:k] + bytes([whole[k] ^ 1 << draw.randrange(8)]) + whole[k + 1 :] for k in offsets]
    damaged += [None, whole + b"x"]
    for content in damaged:
        (newest / name).unlink(missing_ok=True)
        if content is not None:
            (newest / name).write_bytes(content)
        found = saved_checkpoints.find(two)
        assert found.folder.name == "0000-00000005", f"{name}: {content}"
        assert list(found.damaged) == [newest]
        seen += 1
    assert seen >= 42
    (newest / name).write_bytes(whole)
    assert saved_checkpoints.find(two).folder == newest
    (newest / "stranger").touch()
    assert saved_checkpoints.find(two).damaged == {newest: "stranger is not in SHA256SUMS"}


def test_checkpoints_of_which_none_is_whole_are_refused_by_name(two):
    for path in two.iterdir():
        (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"0000-00000010: model.safetensors is missing; 0000-00000005: model"):
        saved_checkpoints.find(two)
    shutil.rmtree(two)
    assert saved_checkpoints.find(two) is None


@pytest.mark.parametrize(("number", "age"), [(1, "an older"), (99, "a newer")])
def test_a_checkpoint_of_another_format_is_refused(parts, tmp_path, monkeypatch, number, age):
    *_, make = parts
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT", number)
        make(tmp_path).save(state_at(1))
    message = f"was written by {age} version of this project .format {number}; this one reads 3.. Resume the run with"
    with pytest.raises(UserError, match=message):
        saved_checkpoints.find(tmp_path)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_state_whose_loss_is_not_finite_is_not_saved(parts, tmp_path, loss):
    *_, make = parts
    with pytest.raises(UserError, match=r"in epoch 3\. Lower --lr"):
        make(tmp_path).save(state_at(5, epoch=2, sums=(loss, 0.0, 4.0)))
    assert not list(tmp_path.iterdir())


def test_what_an_interruption_left_is_no_checkpoint_and_is_deleted(two, parts):
    *_, make = parts
    half, deleting = two / ".0000-00000015.new", two / ".0000-00000001.old"
    for path in (half, deleting):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    found = saved_checkpoints.find(two)
    assert found.folder.name == "0000-00000010"
    checkpoints = make(two)
    checkpoints.load(found)
    assert not list(two.glob(".*"))
    half.mkdir()
    checkpoints.save(state_at(15))
    assert saved_checkpoints.find(two).folder.name == "0000-00000015"
    assert not list(two.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write zeros until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_message_and_the_last_checkpoint_whole(train, small_disk, capsys):
    output = small_disk / "run"
    flags = ["--recipe", "feature_extractor", "--weights", "starter", "--keep-checkpoints", "99", "--output"]
    flags.append(str(output))
    code, _ = train(*flags, "--epochs", "999")
    assert code == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error or "the disk is full" in error
    assert "Traceback" not in error
    newest = saved_checkpoints.find(output / "checkpoints")
    assert newest.damaged == {}
    assert newest.state["epoch"] >= 1
    fill(small_disk / "other")
    code, _ = train(*flags, "--epochs", str(newest.state["epoch"] + 1), "--resume")
    assert code == 2, "still full"
    assert saved_checkpoints.find(output / "checkpoints").folder == newest.folder
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    code, _ = train(*flags, "--epochs", str(newest.state["epoch"] + 1), "--resume")
    assert code == 0
