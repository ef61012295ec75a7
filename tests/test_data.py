"""Samples and batches are pure functions of (seed, epoch, index)."""

import multiprocessing
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SIGNALS
from PIL import Image, ImageOps
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from finetune import data, folders
from finetune.archs import Preprocess
from finetune.errors import UserError
from finetune.recipe import Images, Recipe, Run, Training
from finetune.samples import Draw, RandomResizedCrop, Samples, evaluation_transform, load, to_input, training_transform

PREPROCESS = Preprocess(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def split(image_folder):
    return folders.read(image_folder, 0.2, 0, False).splits


def samples(split, seed=0):
    transform = training_transform(PREPROCESS, "basic", 0.08)
    return Samples(split["train"], 3, transform, seed)


def loaders(split, workers=0, batch_size=4):
    accelerator = Accelerator(cpu=True)
    recipe = Recipe(images=Images(workers=workers), training=Training(batch_size=batch_size), run=Run(seed=3))
    return data.make_loaders(split, PREPROCESS, recipe, accelerator)


def test_augmentation_depends_on_seed_epoch_and_index_alone(split):
    first = samples(split)[Draw(1, 5, 1.0)][0]
    torch.rand(7)  # whatever else was drawn in between
    assert torch.equal(samples(split)[Draw(1, 5, 0.25)][0], first)
    others = ((0, Draw(2, 5, 1.0)), (0, Draw(1, 6, 1.0)), (1, Draw(1, 5, 1.0)))
    for other in [samples(split, seed)[draw] for seed, draw in others]:
        assert not torch.equal(other[0], first)


def test_drawing_a_sample_leaves_the_global_generator_alone(split):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    samples(split)[Draw(0, 0, 1.0)]
    next(iter(loaders(split)["train"]))
    assert torch.equal(torch.rand(3), expected)


def test_workers_and_batch_size_change_no_sample(split):
    seen = []
    for workers, batch_size in ((0, 4), (2, 4), (0, 9)):
        loader = loaders(split, workers, batch_size)["train"]
        for epoch in (0, 1):
            loader.batch_sampler.start_at(epoch)
            batches = list(loader)
            images = torch.cat([batch.images for batch in batches])
            indices = torch.cat([batch.indices for batch in batches])
            seen.append((epoch, indices, images))
    assert len(seen) == 6
    for epoch, indices, images in seen[2:]:
        assert torch.equal(indices, seen[epoch][1])
        assert torch.equal(images, seen[epoch][2])
    assert not torch.equal(seen[0][1], seen[1][1]), "each epoch has its own order"


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 5, 21, 24])
def test_processes_share_the_same_global_batches(count, processes):
    whole = list(data.GlobalBatches(count, 6, seed=0))
    parts = [list(data.GlobalBatches(count, 6, 0, process, processes)) for process in range(processes)]
    assert all(len(part) == len(whole) for part in parts)
    for number, batch in enumerate(whole):
        drawn = [draw for part in parts for draw in part[number] if draw.share > 0]
        assert sorted(draw.index for draw in drawn) == sorted(draw.index for draw in batch)
        assert sum(draw.share for draw in drawn) == pytest.approx(1.0)
        assert all(part[number] for part in parts), "no process is left without work"
    assert sorted(draw.index for batch in whole for draw in batch) == list(range(count))


def test_a_last_image_alone_joins_the_batch_before():
    assert [len(batch) for batch in data.GlobalBatches(9, 4, seed=0, pairs=True)] == [4, 5]
    assert [len(batch) for batch in data.GlobalBatches(9, 4, seed=0)] == [4, 4, 1]
    assert [len(batch) for batch in data.GlobalBatches(9, 4, seed=None)] == [4, 4, 1]
    assert [len(batch) for batch in data.GlobalBatches(1, 4, seed=0)] == [1]


def test_the_bounds_of_batches_are_built_once_an_epoch(monkeypatch):
    batches, built = data.GlobalBatches(21, 4, seed=0), []
    original = data.GlobalBatches._bounds
    monkeypatch.setattr(data.GlobalBatches, "_bounds", lambda self: built.append(1) or original(self))
    assert [batches.largest for _ in batches] == [4] * 6
    assert len(built) == 1


def batches_of(split, batch_size, process, processes, accumulate):
    recipe = Recipe(training=Training(batch_size=batch_size, accumulate=accumulate))
    accelerator = SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cpu"))
    return data.make_loaders(split, PREPROCESS, recipe, accelerator, pairs=True)["train"].batch_sampler


def test_batches_for_batchnorm_are_the_same_on_any_number_of_processes_or_refused(split):
    taken, refused = 0, 0
    for batch_size in range(2, 22):
        for processes, accumulate in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)):
            try:
                ranks = [list(batches_of(split, batch_size, k, processes, accumulate)) for k in range(processes)]
            except UserError as error:
                smallest = int(str(error).partition("use --batch-size ")[2].split()[0].strip("."))
                assert smallest > batch_size
                assert len(batches_of(split, smallest, 0, processes, accumulate))
                refused += 1
                continue
            assert all(len(batch) >= 2 for batches in ranks for batch in batches)
            alone = batches_of(split, batch_size, 0, 1, 1)
            for first in range(alone.updates):  # stopped there, and resumed on one process
                alone.start_at(0, first)
                before = [draw.index for batches in ranks for batch in batches[: first * accumulate] for draw in batch]
                after = [draw.index for batch in alone for draw in batch]
                assert sorted(before + after) == list(range(21))
            taken += 1
    assert (taken, refused) == (63, 37)


def test_too_few_images_for_batchnorm_are_named_with_what_helps(split):
    for arguments, message in (
        ((4, 0, 1, 3), r"^--batch-size 4 with --accumulate 3 on 1 process: of 21 images, .* gets 1\. BatchNorm, .*"
                       r"needs 2: use --batch-size 7 or a smaller --accumulate\.$"),
        ((6, 0, 2, 1), r"--accumulate 1 on 2 processes: .* use --batch-size 7 or fewer processes\.$"),
        ((21, 0, 1, 11), r" gets 1\. .*: use a smaller --accumulate\.$"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            batches_of(split, *arguments)


def test_evaluation_transform_agrees_with_torchvisions_on_pil_images(tmp_path):
    smooth = np.linspace(0, 255, 90)[:, None, None] * np.linspace(0.2, 1, 120)[None, :, None] * np.ones(3)
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "a.png")
    ours = evaluation_transform(PREPROCESS)(load(str(tmp_path / "a.png"), 3))
    ours = to_input(ours[None], PREPROCESS, torch.device("cpu"), channels_last=True)[0]
    reference = v1.Compose([
        v1.Resize(36), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(PREPROCESS.mean, PREPROCESS.std)
    ])(Image.open(tmp_path / "a.png"))  # fmt: skip
    assert (ours - reference).abs().max() < 0.03  # two roundings of a resized byte apart


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_the_random_crop_is_torchvisions_to_the_bit(channels, kind):
    ours, theirs = (make(32, (0.08, 1.0), antialias=True) for make in (RandomResizedCrop, v2.RandomResizedCrop))
    seen = 0
    for height, width in ((40, 61), (300, 200), (32, 32), (9, 200)):
        image = torch.randint(0, 256, (height, width, channels), dtype=torch.uint8).permute(2, 0, 1)
        image = image if kind == torch.uint8 else image / 255
        for seed in range(10):
            torch.manual_seed(seed)
            expected = theirs(image)
            torch.manual_seed(seed)
            assert torch.equal(ours(image), expected)
            seen += 1
    assert seen == 40


def test_images_of_every_mode_decode_to_upright_rgb(tmp_path):
    grey = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert load(str(tmp_path / "deep.png"), 3).amax() == 255
    assert load(str(tmp_path / "deep.png"), 3)[:, 3, 0].tolist() == [int(grey[3, 0] / 257)] * 3
    for name in ("dark.png", "dark.tif", "dark.pgm"):  # modes I;16 and I: not as bright as their own maximum
        Image.fromarray(grey // 256).save(tmp_path / name)
        assert load(str(tmp_path / name), 3).amax() == 0, name
    Image.fromarray(np.full((6, 8), 70_000, np.int32)).save(tmp_path / "whole.tif")
    assert load(str(tmp_path / "whole.tif"), 3).amin() == 255
    for value, byte in ((1.0, 255), (0.01, 2)):
        Image.fromarray(np.full((6, 8), value, np.float32)).save(tmp_path / "floats.tif")
        assert load(str(tmp_path / "floats.tif"), 3).unique().tolist() == [byte]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert load(str(tmp_path / "turned.jpg"), 3).shape == (3, 8, 6)
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (8, 6)).save(path)
        assert load(str(path), 3).shape == (3, 6, 8)
    with pytest.raises(UserError, match=r"gone\.jpg does not decode"):
        load(str(tmp_path / "gone.jpg"), 3)


def test_jpegs_decode_to_what_pillow_makes_of_them(tmp_path):
    """Within two levels: the two bring a libjpeg each, whose versions round differently."""
    drawn = torch.randint(0, 256, (7, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture, seen = Image.fromarray(drawn.numpy()).resize((90, 70)), 0
    for mode in ("RGB", "L", "CMYK"):
        for orientation in range(1, 9):
            for progressive in (False, True):
                exif = Image.Exif()
                exif[0x0112] = orientation
                path = tmp_path / f"{mode}{orientation}{progressive}.JPG"
                picture.convert(mode).save(path, "jpeg", exif=exif, progressive=progressive)
                with Image.open(path) as image:
                    upright = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))  # (H, W, C)
                ours = load(str(path), 3).movedim(0, -1)
                assert ours.shape == upright.shape
                assert (ours.int() - upright.int()).abs().max() <= 2
                seen += 1
    assert seen == 48


def test_normalised_batches_are_torchvisions():
    seen = 0
    for images in (torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8), torch.rand(3, 3, 5, 7)):
        expected = functional.normalize(functional.to_dtype(images, scale=True), PREPROCESS.mean, PREPROCESS.std)
        for channels_last in (True, False):
            found = to_input(images, PREPROCESS, torch.device("cpu"), channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert found.is_contiguous(memory_format=layout)
            torch.testing.assert_close(found, expected)
            seen += 1
    assert seen == 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "grey.jpg"])
def test_an_image_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 20 // 2 - 1)  # Pillow refuses twice as many
    monkeypatch.setattr("finetune.samples.decode_jpeg", None)
    path = str(tmp_path / name)
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(UserError, match=rf"{name} does not decode: .* exceeds limit"):
        load(path, 1 if "grey" in name else 3)
    with pytest.raises(UserError, match="exceeds limit"):
        folders.decodable([path], False)


def test_a_worker_outlives_signals_until_the_run_ends():
    fork = multiprocessing.get_context("fork")
    ending, here = fork.RawValue("b"), fork.Event()

    def work():
        data._outlive_signals(ending, 0)
        while True:
            here.set()
            time.sleep(0.01)

    worker = fork.Process(target=work, daemon=True)
    worker.start()
    assert here.wait(30)
    for number in SIGNALS:
        os.kill(worker.pid, number)
    time.sleep(0.1)
    here.clear()
    assert here.wait(5)
    ending.value = 1
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0, "torch raises for one that a signal ended"
