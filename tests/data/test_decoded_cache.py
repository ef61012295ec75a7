"""Decoded copies of a split's files are the same samples to the bit, or are not there for any process."""

import os
import shutil
import time

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from PIL import Image
from support import reset_accelerate

from finetune.config.settings import Images
from finetune.data import decoded_cache, readers, tensor_cache
from finetune.data.dataset import Draw, Samples
from finetune.data.decode import load
from finetune.data.transforms import training_transform
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Stop(Exception):
    pass


@pytest.fixture
def split(image_folder):
    return readers.read(Images(data=str(image_folder)), 3, seed=0).splits["train"]


def samples_of(split, channels=3):
    return Samples(split, channels, training_transform(PREPROCESS, Images(), smallest_crop=0.08), seed=0)


def use(samples, folder, limit=10**9, raise_if_stopped=lambda: None):
    accelerator = Accelerator(cpu=True)
    return decoded_cache.use(samples, folder, limit, {}, accelerator, lambda chunks, _: chunks, raise_if_stopped)


def no_decoding(*_):
    raise AssertionError("a file was decoded again")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_of_decoded_copies_are_the_same_to_the_bit_and_decode_nothing(split, tmp_path, monkeypatch, channels):
    plain, first, second = (samples_of(split, channels) for _ in range(3))
    assert use(first, tmp_path) == ""
    monkeypatch.setattr(decoded_cache, "load", no_decoding)
    assert use(second, tmp_path) == ""
    for cached in (first, second):
        assert len(cached) == len(plain) == 21
        assert cached.split.labels == split.labels
        for k in range(21):
            ours, theirs = cached[Draw(1, k, 1.0)], plain[Draw(1, k, 1.0)]
            assert torch.equal(ours[0], theirs[0])
            assert ours[1:] == theirs[1:]


def test_a_changed_file_is_decoded_again(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    split = readers.read(Images(data=str(tmp_path / "data")), 3, seed=0).splits["train"]
    assert use(samples_of(split), tmp_path / "cache") == ""
    Image.new("RGB", (50, 40), "white").save(split.items[0])
    samples = samples_of(split)
    assert use(samples, tmp_path / "cache") == ""
    assert samples.split.items[0].unique().tolist() == [255]


def test_the_estimate_is_the_size_of_all_images_from_the_headers_of_some(split, monkeypatch):
    samples = samples_of(split)
    whole = sum(load(path, 3).numel() for path in split.items)
    assert decoded_cache.estimate(samples) == whole
    monkeypatch.setattr(decoded_cache, "SAMPLE", 3)
    assert decoded_cache.estimate(samples) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("limit", [0, 50_000])  # images of 5 kB: before the first chunk, and in the middle
def test_where_there_is_no_room_files_are_read_and_nothing_is_left(split, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(decoded_cache, "CHUNK", 4)
    samples = samples_of(split)
    assert use(samples, tmp_path, limit) == "they need more than --cache-gb"
    assert samples.split is split
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_the_system_s_reason_is_given(split, tmp_path):
    (tmp_path / "file").write_text("x")
    samples = samples_of(split)
    assert use(samples, tmp_path / "file" / "cache") == "Not a directory"
    assert samples.split is split


def test_a_stop_is_raised_between_chunks_and_leaves_nothing(split, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_cache, "CHUNK", 4)
    calls = []

    def raise_if_stopped():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        use(samples_of(split), tmp_path, raise_if_stopped=raise_if_stopped)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_waits_reads_what_the_other_has_decoded_last(split, tmp_path, monkeypatch):
    def slow(*arguments):
        time.sleep(0.02)
        return load(*arguments)

    def work(path):
        rank = torch.distributed.get_rank()
        os.environ["LOCAL_RANK"] = str(rank)  # else each is the main process of its machine
        reset_accelerate()
        samples = samples_of(split)
        failure = use(samples, path)
        (path / f"rank{rank}").write_text(f"{failure}{type(samples.split.items).__name__}")

    monkeypatch.setattr(decoded_cache, "load", slow)
    debug_launcher(work, (tmp_path,), num_processes=2)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["Decoded", "Decoded"]
    assert len(tensor_cache.entries(tmp_path)) == 2
