"""Training on kept activations is the training on images: the same losses and weights, whatever is kept."""

import errno
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, metrics, write_images
from safetensors.torch import load_file, save_file
from test_distributed import accelerate, launch
from test_resume import wait_for

from finetune import pixels, samples, store, terminal

FLOATS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("finetune.plots.draw_all", lambda *arguments: None)


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
KEPT = {  # a file for each view in each phase with a frozen start
    "last_layers": ["train"] * 2 + ["val"],
    "gradual_unfreeze": ["train"] * 3 + ["val"] * 3,
    "linear_then_finetune": ["val"],
    "grayscale": ["train", "val"],
}


@pytest.mark.parametrize("recipe", CASES)
def test_cached_is_uncached(train, tmp_path, recipe):
    flags = ("--recipe", recipe, "--weights", "starter", "--batch-size", "6", *CASES[recipe].split())
    cached, plain = (train(*flags, *more)[1] for more in ((), ("--cache-gb", "0")))
    close(cached, plain)
    if recipe == "last_layers":
        assert metrics(train(*flags)[1]) == metrics(cached), "what was kept is what was computed"
    held = [entry.about for entry in store.entries(tmp_path / "cache") if "place" in entry.about]
    assert sorted(about["images"].split()[1] for about in held) == KEPT[recipe]


def test_views_take_turns(train):
    flags = ("--lr", "1e-30", "--epochs", "4", "--optimizer", "sgd", "--head", "mlp", "--hidden", "8", "--dropout", "0")
    two = [line["train_loss"] for line in metrics(train("--views", "2", *flags)[1])]
    assert two[0] == pytest.approx(two[2])


@pytest.mark.parametrize("change", ["weights", "image", "seed", "damage"])
def test_what_is_stale_or_damaged_is_computed_anew(train, tmp_path, change):
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
        assert all(store.whole(path) for path in now)
    if change in ("damage", "image"):
        assert metrics(second) == metrics(first)


def test_what_other_kernels_computed_is_not_taken(train, tmp_path, monkeypatch):
    kept = []
    for known in ("AVX2", "AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda known=known: known)
        assert train("--views", "1", "--epochs", "1")[0] == 0
        kept.append(len(list((tmp_path / "cache").iterdir())))
    assert kept == [2, 4, 4], "a file for each split"


def test_too_little_room_means_a_plain_run_that_says_so(train, capsys):
    code, output = train("--cache-gb", "1e-7")
    assert code == 0
    assert "would not fit: --cache-gb" in capsys.readouterr().out
    assert not (output.parent / "cache").exists()


def test_a_folder_that_cannot_be_written_means_a_plain_run(train, tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, output = train("--cache-dir", str(tmp_path / "cache" / "inside"))
    assert code == 0
    assert len(metrics(output)) == 2


@pytest.mark.parametrize(("fails_at", "begun"), [(1, 1), (3, 2), (4, 3)])
def test_where_writing_fails_the_run_says_so_once_and_goes_on_from_the_images(
    train, tmp_path, capsys, monkeypatch, fails_at, begun
):
    flags = ("--recipe", "gradual_unfreeze", "--unfreeze-every", "2", "--epochs", "4", "--views", "2", "--lr", "1e-2")
    flags += ("--optimizer", "sgd", "--weights", "starter", "--batch-size", "6")
    plain = train(*flags, "--cache-gb", "0")[1]
    calls, titles, append, progress = [], [], store.Writer.append, terminal.progress

    def failing(self, rows):
        calls.append(rows)
        append(self, rows)
        if len(calls) == fails_at:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(store.Writer, "append", failing)
    monkeypatch.setattr(
        terminal, "progress", lambda *words, **more: titles.append(words[1]) or progress(*words, **more)
    )
    capsys.readouterr()
    code, output = train(*flags, "--no-cache-images", "--cache-dir", str(tmp_path / "full"))
    assert code == 0
    said = capsys.readouterr().out
    assert said.count("(Disk quota exceeded): the run goes on from the images.") == said.count("cannot be kept") == 1
    assert len(calls) == fails_at
    assert len([title for title in titles if title.startswith("frozen part")]) == begun
    assert not [path for path in (tmp_path / "full").iterdir() if path.suffix != store.SUFFIX]
    close(plain, output)


def test_where_writing_fails_on_one_process_all_go_on_from_the_images(start, tmp_path, monkeypatch):
    flags = ("--recipe", "last_layers", "--epochs", "3", "--views", "2", "--lr", "1e-2", "--optimizer", "sgd")
    flags += ("--weights", "starter", "--batch-size", "7")
    plain = start("plain", *flags, "--cache-gb", "0", processes=2)
    assert plain.wait(60) == [0, 0], plain.said
    calls, append = [], store.Writer.append

    def failing(self, rows):
        calls.append(rows)
        if len(calls) == 3:  # the second view, after an epoch on the first one's activations
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        append(self, rows)

    monkeypatch.setattr(store.Writer, "append", failing)
    run = start("run", *flags, "--no-cache-images", "--cache-dir", str(tmp_path / "full"), processes=2)
    assert run.wait(60) == [0, 0], run.said
    assert run.said.count("cannot be kept") == 1
    close(plain.output, run.output)


def test_the_plan_says_what_is_kept(train, capsys):
    def said(*flags):
        assert train("--plan", *flags)[0] == 0
        return " ".join(capsys.readouterr().out.split())

    assert "what mean gives of 9 val, 21 train in 2 views" in said("--views", "2")
    assert "(not of train: each epoch draws fresh augmentations)" in said("--views", "0")
    assert "(not of train: images are mixed anew in each epoch)" in said("--cutmix", "1")
    assert "nothing (all is trained)" in said("--recipe", "finetune")
    assert "nothing (--cache-gb 0)" in said("--cache-gb", "0")
    shown = said("--recipe", "gradual_unfreeze", "--epochs", "4")
    assert "epochs 1 to 2: what mean gives" in shown
    assert "epochs 3 to 4: what stage4." in shown


def decoded(folder):
    """What is kept of decoded images in a folder."""
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if "-" in path.name)


def test_decoded_images_change_nothing(train, tmp_path, monkeypatch):
    flags = ("--recipe", "finetune", "--epochs", "3", "--workers", "1")
    plain = train(*flags, "--no-cache-images")[1]
    assert not (tmp_path / "cache").exists()
    first = train(*flags)[1]
    assert decoded(tmp_path / "cache") == ["pixels.safetensors"] * 2 + ["shapes.safetensors"] * 2
    monkeypatch.setattr(samples, "decode_jpeg", None)  # nothing is decoded again
    second = train(*flags)[1]
    assert metrics(first) == metrics(second) == metrics(plain) != []


def test_images_that_are_decoded_once_or_fit_nowhere_are_not_kept(train, tmp_path, capsys, monkeypatch):
    def said(*flags):
        code, output = train("--epochs", "3", *flags)
        assert code == 0
        return output, " ".join(capsys.readouterr().out.split())

    assert "decoded not kept (train: decoded twice only)" in said("--views", "2")[1]
    assert "decoded kept of train: about" in said("--views", "0")[1]
    assert decoded(tmp_path / "cache") == ["pixels.safetensors", "shapes.safetensors"]
    whole, shown = said("--recipe", "finetune")
    assert "decoded kept of train and val: about" in shown
    small = ("--recipe", "finetune", "--cache-dir", str(tmp_path / "small"))
    limited, shown = said(*small, "--cache-gb", "1e-6")
    assert "GB would not fit: --cache-gb, or a quarter of the memory" in shown
    with monkeypatch.context() as patched:
        patched.setattr(pixels, "estimate", lambda _: 5_000_000_000)
        assert "decoded not kept (train: 5 GB would not fit" in said("--plan", "--recipe", "finetune")[1]
    monkeypatch.setattr(pixels, "estimate", lambda _: 0)  # larger than they seemed
    late, shown = said(*small, "--cache-gb", "1e-6")
    assert "Decoded train images are not kept: they do not fit" in shown
    assert list((tmp_path / "small").iterdir()) == []
    assert metrics(whole) == metrics(limited) == metrics(late)


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (("--recipe", "finetune", "--epochs", "3"), "decoding images"),
        (("--recipe", "feature_extractor"), "frozen part, train images, view 1"),
    ],
)
def test_after_a_stop_nothing_else_is_begun(train, tmp_path, monkeypatch, flags, title):
    begun, original = [], terminal.progress

    def progress(batches, said, console):
        begun.append(said)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(batches, said, console)

    monkeypatch.setattr(terminal, "progress", progress)
    assert train(*flags)[0] == 75
    assert begun == [title]
    assert list((tmp_path / "cache").glob("*")) == []


def test_all_processes_stop_while_one_decodes(start, tmp_path, monkeypatch):
    original = pixels.load

    def load(*arguments):
        time.sleep(0.5)
        return original(*arguments)

    monkeypatch.setattr(pixels, "load", load)
    monkeypatch.setattr(pixels, "PART", 1)
    cache = tmp_path / "kept"
    run = start("run", "--recipe", "finetune", "--epochs", "3", "--cache-dir", str(cache), processes=2)
    wait_for("../kept/*-pixels*", run)
    run.signal(signal.SIGTERM, rank=1)
    assert run.wait(60) == [75, 75], run.said
    assert list(cache.iterdir()) == []


def test_decoded_images_and_activations_go_together(train, tmp_path):
    flags = ("--recipe", "last_layers", "--views", "3", "--epochs", "3")
    plain = train(*flags, "--no-cache-images", "--cache-dir", str(tmp_path / "other"))[1]
    assert metrics(train(*flags)[1]) == metrics(plain)
    assert decoded(tmp_path / "cache") == ["pixels.safetensors", "shapes.safetensors"]


def test_arrays_are_kept_too(train, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for name, count in (("train", 12), ("test", 6)):
        np.save(tmp_path / "set" / f"x_{name}.npy", rng.integers(0, 255, (count, 32, 32), dtype=np.uint8))
        np.save(tmp_path / "set" / f"y_{name}.npy", np.arange(count) % 3)
    close(*(train("--cache-gb", gb, "--views", "1", data=tmp_path / "set")[1] for gb in ("1", "0")))


def test_two_processes_fill_together_what_one_would(image_folder, tmp_path):
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
        assert torch.equal(store.read(one[name]), store.read(two[name]))
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["num_processes"] == 2
