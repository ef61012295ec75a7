"""Training on cached activations equals training on images: the same losses and weights."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, accelerate, launch, metrics, no_pictures, write_images

from finetune.data import tensor_cache
from finetune.models import surgery
from finetune.runtime import progress

FLOATS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    no_pictures(monkeypatch)


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def close(one, other) -> None:
    """Two runs' losses and weights, to rounding."""
    lines, others = metrics(one), metrics(other)
    assert len(lines) == len(others) >= 2
    for line, known in zip(lines, others, strict=True):
        assert [line[name] for name in FLOATS] == pytest.approx([known[name] for name in FLOATS], rel=1e-5)
    for key, value in weights(one).items():
        torch.testing.assert_close(value, weights(other)[key], rtol=1e-5, atol=1e-6, msg=key)


# Adam would make much of a rounding where a gradient is next to nothing.
CASES = {
    "last_layers": "--batch-size 8 --views 2 --accumulate 2 --balanced --ema 0.5 --epochs 3 --optimizer sgd --lr 1e-2",
    "gradual_unfreeze": "--unfreeze-every 1 --epochs 3 --views 2 --optimizer sgd --lr 1e-2",
    "linear_then_finetune": "--head-epochs 1 --epochs 2 --mixup 0.2 --optimizer sgd --lr 1e-2",
    "grayscale": "--dropout 0.3 --no-channels-last --augment none",
}
CACHED = {  # a file for each view in each phase with a frozen part
    "last_layers": ["train"] * 2 + ["val"],
    "gradual_unfreeze": ["train"] * 3 + ["val"] * 3,
    "linear_then_finetune": ["val"],
    "grayscale": ["train", "val"],
}


@pytest.mark.parametrize(
    "recipe",
    [
        "gradual_unfreeze",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("last_layers", "grayscale", "linear_then_finetune")),
    ],
)
def test_cached_activations_change_neither_losses_nor_weights(train, tmp_path, recipe):
    flags = ("--recipe", recipe, "--weights", "starter", "--batch-size", "6", *CASES[recipe].split())
    first, plain = (train(*flags, *more)[1] for more in ((), ("--cache-gb", "0")))
    close(first, plain)
    if recipe == "last_layers":
        assert metrics(train(*flags)[1]) == metrics(first), "what is cached is what was computed"
    cached = [entry.about for entry in tensor_cache.entries(tmp_path / "cache") if "place" in entry.about]
    assert sorted(about["images"].split()[1] for about in cached) == CACHED[recipe]


def test_views_take_turns(train, monkeypatch):
    build = surgery.build

    def with_random_head(*arguments):
        model, *rest = build(*arguments)
        torch.nn.init.normal_(model.fc.weight)  # a new head is zero, and gives all images the same logits
        return model, *rest

    monkeypatch.setattr(surgery, "build", with_random_head)
    flags = ("--lr", "1e-30", "--epochs", "4", "--optimizer", "sgd", "--weights", "starter")
    two = [record["train_loss"] for record in metrics(train("--views", "2", *flags)[1])]
    assert two[:2] == pytest.approx(two[2:], rel=1e-6)
    assert two[0] != pytest.approx(two[1], rel=1e-4)


@pytest.mark.parametrize("change", ["weights", "image", "seed", "damage"])
def test_stale_or_damaged_activations_are_computed_anew(train, tmp_path, change):
    write_images(tmp_path / "data" / "train", 3)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    common = {"--epochs": "2", "--views": "1", "--weights": "starter"}

    def run(**changes):
        flags = common | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        code, output = train(*(word for pair in flags.items() for word in pair), data=tmp_path / "data")
        assert code == 0
        return output

    first = run()
    known = {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()}
    changes = {"seed": {"seed": "1"}}.get(change, {})
    if change == "weights":
        state = load_file(first / "model" / "model.safetensors")
        state["conv1.0.weight"] *= 1.5
        save_file(state, tmp_path / "changed.safetensors")
        changes = {"weights": str(tmp_path / "changed.safetensors")}
    if change == "image":
        os.utime(tmp_path / "data" / "val" / "red" / "00.jpg", (1, 1))
    if change == "damage":
        for path in known:
            with path.open("r+b") as file:
                file.seek(-3, os.SEEK_END)
                file.write(b"\x00\x01\x02")
    second = run(**changes)
    now = {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()}
    made = {"image": 1, "seed": 1, "damage": 0}.get(change, 2)
    assert len(set(now) - set(known)) == made
    if change == "damage":
        assert all(tensor_cache.is_whole(path) for path in now)
    if change in ("damage", "image"):
        assert metrics(second) == metrics(first)


def test_activations_of_other_kernels_are_not_used(train, tmp_path, monkeypatch):
    files = []
    for known in ("AVX2", "AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda known=known: known)
        assert train("--views", "1", "--epochs", "1")[0] == 0
        files.append(len(list((tmp_path / "cache").iterdir())))
    assert files == [2, 4, 4], "a file for each split"


def test_too_little_room_means_a_plain_run_that_says_so(train, capsys):
    code, output = train("--cache-gb", "1e-7")
    assert code == 0
    assert "would not fit: --cache-gb" in capsys.readouterr().out
    assert not (output.parent / "cache").exists()


def test_a_cache_folder_that_cannot_be_made_is_named_before_anything_is_written(train, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    code, output = train("--cache-dir", str(tmp_path / "cache" / "inside"))
    assert code == 2
    assert "inside cannot be read, written or made. Name another, or leave it out." in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("fails_at", "begun"), [(1, 1), (3, 2), (4, 3)])
def test_where_writing_fails_the_run_says_so_once_and_goes_on_from_the_images(
    train, tmp_path, capsys, monkeypatch, fails_at, begun
):
    flags = ("--recipe", "gradual_unfreeze", "--unfreeze-every", "2", "--epochs", "4", "--views", "2", "--lr", "1e-2")
    flags += ("--optimizer", "sgd", "--weights", "starter", "--batch-size", "6")
    plain = train(*flags, "--cache-gb", "0")[1]
    calls, titles, append, original = [], [], tensor_cache.Writer.append, progress.progress

    def failing(self, rows):
        calls.append(rows)
        append(self, rows)
        if len(calls) == fails_at:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(tensor_cache.Writer, "append", failing)
    monkeypatch.setattr(
        progress, "progress", lambda *words, **more: titles.append(words[1]) or original(*words, **more)
    )
    capsys.readouterr()
    code, output = train(*flags, "--no-cache-images", "--cache-dir", str(tmp_path / "full"))
    assert code == 0
    printed = capsys.readouterr().out
    assert printed.count("Disk quota exceeded. Training goes on") == printed.count("are not cached") == 1
    assert len(calls) == fails_at
    assert len([title for title in titles if title.startswith("frozen part")]) == begun
    assert not [path for path in (tmp_path / "full").iterdir() if path.suffix != tensor_cache.SUFFIX]
    close(plain, output)


@pytest.mark.slow
def test_where_writing_fails_on_one_process_all_go_on_from_the_images(start, tmp_path, monkeypatch):
    flags = ("--recipe", "last_layers", "--epochs", "3", "--views", "2", "--lr", "1e-2", "--optimizer", "sgd")
    flags += ("--weights", "starter", "--batch-size", "7")
    plain = start("plain", *flags, "--cache-gb", "0", processes=2)
    assert plain.wait(60) == [0, 0], plain.said
    calls, append = [], tensor_cache.Writer.append

    def failing(self, rows):
        calls.append(rows)
        if len(calls) == 3:  # the second view, after an epoch on the first one's activations
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        append(self, rows)

    monkeypatch.setattr(tensor_cache.Writer, "append", failing)
    run = start("run", *flags, "--no-cache-images", "--cache-dir", str(tmp_path / "full"), processes=2)
    assert run.wait(60) == [0, 0], run.said
    assert run.said.count("are not cached") == 1
    close(plain.output, run.output)


@pytest.mark.slow
def test_arrays_are_cached_too(train, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for name, count in (("train", 12), ("test", 6)):
        np.save(tmp_path / "set" / f"x_{name}.npy", rng.integers(0, 255, (count, 32, 32), dtype=np.uint8))
        np.save(tmp_path / "set" / f"y_{name}.npy", np.arange(count) % 3)
    close(*(train("--cache-gb", gb, "--views", "1", data=tmp_path / "set")[1] for gb in ("1", "0")))


@pytest.mark.slow
def test_two_processes_cache_together_what_one_does(image_folder, tmp_path):
    config = str(ROOT / "launch" / "cpu_2proc.yaml")
    flags = ("--precision", "no", "--views", "1", "--recipe", "last_layers")
    together = launch(accelerate("--config_file", config), tmp_path / "two", image_folder, *flags)
    assert together.returncode == 0, together.stderr
    alone = launch([os.sys.executable], tmp_path / "one", image_folder, *flags)
    assert alone.returncode == 0, alone.stderr
    one, two = ({p.name: p for p in (tmp_path / f"{n}-cache").iterdir()} for n in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(one) == 2
    for name in one:
        assert torch.equal(tensor_cache.read(one[name]), tensor_cache.read(two[name]))
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["num_processes"] == 2
