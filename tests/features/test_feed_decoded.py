"""Training on cached decoded images equals training on the files."""

import os
import signal
import time

import pytest
from support import metrics, no_pictures, wait_for

from finetune.data import decode, decoded_cache
from finetune.runtime import progress


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    no_pictures(monkeypatch)


def decoded(folder):
    """The kinds of files of decoded images in a folder."""
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if "-" in path.name)


@pytest.mark.slow
def test_decoded_images_change_nothing(train, tmp_path, monkeypatch):
    flags = ("--recipe", "finetune", "--epochs", "3", "--workers", "1")
    plain = train(*flags, "--no-cache-images")[1]
    assert not (tmp_path / "cache").exists()
    first = train(*flags)[1]
    assert decoded(tmp_path / "cache") == ["pixels.safetensors"] * 2 + ["shapes.safetensors"] * 2
    monkeypatch.setattr(decode, "decode_jpeg", None)  # nothing is decoded again
    second = train(*flags)[1]
    assert metrics(first) == metrics(second) == metrics(plain) != []


@pytest.mark.slow
def test_images_that_are_decoded_once_or_do_not_fit_are_not_cached(train, tmp_path, capsys, monkeypatch):
    def printed(*flags):
        code, output = train("--epochs", "3", *flags)
        assert code == 0
        return output, " ".join(capsys.readouterr().out.split())

    assert "decoded not cached (train: decoded twice only)" in printed("--views", "2")[1]
    assert "decoded train cached: about" in printed("--views", "0")[1]
    assert decoded(tmp_path / "cache") == ["pixels.safetensors", "shapes.safetensors"]
    whole, shown = printed("--recipe", "finetune")
    assert "decoded train and val cached: about" in shown
    small = ("--recipe", "finetune", "--cache-dir", str(tmp_path / "small"))
    limited, shown = printed(*small, "--cache-gb", "1e-6")
    assert "GB would not fit: --cache-gb, or a quarter of the memory" in shown
    with monkeypatch.context() as patched:
        patched.setattr(decoded_cache, "estimate", lambda _: 5_000_000_000)
        assert "decoded not cached (train: 5 GB would not fit" in printed("--plan", "--recipe", "finetune")[1]
    monkeypatch.setattr(decoded_cache, "estimate", lambda _: 0)  # larger than they seemed
    late, shown = printed(*small, "--cache-gb", "1e-6")
    assert "they need more than --cache-gb" in shown.partition("Decoded train images are not cached in ")[2]
    assert not (tmp_path / "small").exists()
    assert metrics(whole) == metrics(limited) == metrics(late)


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        (("--recipe", "finetune", "--epochs", "3"), "decoding images"),
        (("--recipe", "feature_extractor"), "frozen part, train images, view 1"),
    ],
)
def test_after_a_stop_nothing_else_is_begun(train, tmp_path, monkeypatch, flags, title):
    begun, original = [], progress.progress

    def stopping(batches, title, console):
        begun.append(title)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(batches, title, console)

    monkeypatch.setattr(progress, "progress", stopping)
    assert train(*flags)[0] == 75
    assert begun == [title]
    assert list((tmp_path / "cache").glob("*")) == []


def test_all_processes_stop_while_one_decodes(start, tmp_path, monkeypatch):
    original = decoded_cache.load

    def load(*arguments):
        time.sleep(0.5)
        return original(*arguments)

    monkeypatch.setattr(decoded_cache, "load", load)
    monkeypatch.setattr(decoded_cache, "CHUNK", 1)
    cache = tmp_path / "decoded"
    run = start("run", "--recipe", "finetune", "--epochs", "3", "--cache-dir", str(cache), processes=2)
    wait_for("../decoded/*-pixels*", run)
    run.signal(signal.SIGTERM, rank=1)
    assert run.wait(60) == [75, 75], run.said
    assert list(cache.iterdir()) == []


def test_decoded_images_and_activations_go_together(train, tmp_path):
    flags = ("--recipe", "last_layers", "--views", "3", "--epochs", "3")
    plain = train(*flags, "--no-cache-images", "--cache-dir", str(tmp_path / "other"))[1]
    assert metrics(train(*flags)[1]) == metrics(plain)
    assert decoded(tmp_path / "cache") == ["pixels.safetensors", "shapes.safetensors"]
