"""Transforms give torchvision's values."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from PIL import Image
from support import different_losses, metrics
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from finetune.config.settings import Images
from finetune.data.decode import load
from finetune.data.transforms import (
    RandomResizedCrop,
    evaluation_transform,
    flipped_transforms,
    mixing,
    to_input,
    training_transform,
)
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


# ---- --fit -----------------------------------------------------------------------------------------------------------
SHAPES = [(40, 60), (60, 40), (50, 50), (7, 9), (3, 300), (300, 2)]


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_fit_is_torchvisions_resize_with_zeros_after_normalisation(kind):
    """The lines that docs/using.md gives for other programs."""
    size = {"crop": (36, None), "squash": ((32, 32), None), "pad": (None, 32)}
    seen = 0
    for fit, (side, longest) in size.items():
        for height, width in SHAPES[:4]:
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            image = image if kind == torch.uint8 else image / 255
            preprocess = replace(PREPROCESS, fit=fit)
            resize = v2.Resize(side, max_size=longest, antialias=True)
            scaled = functional.to_dtype(resize(image), torch.float32, scale=True)
            normalised = functional.normalize(scaled, PREPROCESS.mean, PREPROCESS.std)
            expected = functional.center_crop(normalised, [32, 32])
            found = to_input(evaluation_transform(preprocess)(image)[None], preprocess, torch.device("cpu"), True)[0]
            torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # the mean colour is a rounded byte
            seen += 1
    assert seen == 12


@pytest.mark.parametrize("augment", ["none", "basic"])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_any_shape_becomes_a_square(fit, augment):
    for height, width in SHAPES:
        for channels in (1, 3):
            preprocess = replace(PREPROCESS, fit=fit, mean=(0.5,) * channels, std=(0.2,) * channels)
            transform = training_transform(preprocess, Images(augment=augment), smallest_crop=0.08)
            image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)
            assert transform(image).shape == (channels, 32, 32)


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_training_keeps_the_geometry_of_evaluation(fit):
    """The whole image as its own crop gives the evaluation transform, and parts are as wide and high as the image."""
    preprocess = replace(PREPROCESS, fit=fit)
    image = torch.randint(0, 256, (3, 60, 120), dtype=torch.uint8)
    whole = training_transform(preprocess, Images(hflip=False), smallest_crop=1.0)
    assert torch.equal(whole(image), evaluation_transform(preprocess)(image))
    part = training_transform(preprocess, Images(hflip=False), smallest_crop=0.1).transforms[0]
    torch.manual_seed(0)
    shapes = [part(image).shape[1:] for _ in range(200)]
    ratios = torch.tensor([width / height for height, width in shapes])
    areas = torch.tensor([width * height for height, width in shapes]) / (60 * 120)
    assert 1.4 < ratios.min() < 1.7, "2, times 3/4"
    assert 2.4 < ratios.max() < 2.8, "2, times 4/3"
    assert 0.08 < areas.min() < 0.2
    assert 0.8 < areas.max() <= 1


def test_padding_is_even():
    padded = evaluation_transform(replace(PREPROCESS, fit="pad"))(torch.zeros(3, 20, 32))
    rows = padded[0].any(1)
    assert rows[:6].all()
    assert rows[-6:].all()
    assert not rows[6:-6].any()


# ---- --augment -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("augment", ["none", "basic", "strong", "rand", "trivial"])
def test_every_augmentation_gives_the_input_s_size_and_keeps_the_type(augment, kind):
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    image = image if kind == torch.uint8 else image / 255
    transform = training_transform(PREPROCESS, Images(augment=augment, vflip=True, erase=0.5), smallest_crop=0.08)
    views = [transform(image) for _ in range(4)]
    assert {(view.shape, view.dtype) for view in views} == {((3, 32, 32), kind)}
    assert all(torch.equal(view, views[0]) for view in views) == (augment == "none")


def test_erasing_leaves_the_mean_colour_which_normalisation_makes_zero():
    seen = 0
    for image, tolerance in ((torch.zeros(3, 60, 60, dtype=torch.uint8), 0.01), (torch.zeros(3, 60, 60), 1e-6)):
        transform = training_transform(PREPROCESS, Images(erase=1.0), smallest_crop=0.08)
        torch.manual_seed(0)
        for _ in range(5):
            erased = transform(image).any(0)  # (H, W)
            assert 0.01 < erased.float().mean() < 0.35
            x = to_input(transform(image)[None], PREPROCESS, torch.device("cpu"), channels_last=True)[0]
            assert x.abs().amin((1, 2)).max() < tolerance, "in each channel some pixels are zero"
            seen += 1
    assert seen == 10


def test_images_are_flipped_only_in_the_ways_that_are_asked_for():
    image = torch.arange(32 * 32, dtype=torch.uint8).view(1, 32, 32).expand(3, -1, -1)
    ways = {(): image, (2,): image.flip(2), (1,): image.flip(1), (1, 2): image.flip(1, 2)}
    preprocess = replace(PREPROCESS, resize=32)
    seen = 0
    for hflip in (False, True):
        for vflip in (False, True):
            expected = {axes for axes in ways if (2 not in axes or hflip) and (1 not in axes or vflip)}
            flipped = [transform(image) for transform in flipped_transforms(preprocess, hflip, vflip)]
            assert torch.equal(flipped[0], image)
            drawn = training_transform(preprocess, Images(hflip=hflip, vflip=vflip), smallest_crop=1.0)
            torch.manual_seed(0)
            randomly = [reduce(lambda x, flip: flip(x), drawn.transforms[1:], image) for _ in range(40)]
            for found in (flipped, randomly):  # the crop, which is left out, resizes
                assert {axes for axes, way in ways.items() if any(map(way.equal, found))} == expected
                assert all(any(map(one.equal, ways.values())) for one in found)
                seen += 1
    assert seen == 8


def test_images_are_mixed_where_either_setting_asks_for_it():
    assert mixing(0, 0) is None
    pair = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    for mixup, cutmix in ((1.0, 0), (0, 1.0), (1.0, 1.0)):
        images, labels = mixing(mixup, cutmix)(pair, torch.tensor([0, 1]))
        # The fraction of the first image's own label is that of its own pixels.
        torch.testing.assert_close(labels[0, 0], 1 - images[0].mean())


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


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--mixup", "--cutmix"])
def test_mixing_is_seeded_per_image_and_workers_change_nothing(train, flag):
    flags = ("--recipe", "finetune", "--batch-size", "11")
    plain = metrics(train(*flags)[1])
    mixed = [metrics(train(*flags, flag, "1.0", "--workers", workers)[1]) for workers in ("0", "2")]
    assert mixed[0] == mixed[1]
    assert mixed[0][0]["train_loss"] != plain[0]["train_loss"]


@pytest.mark.slow
def test_each_augmentation_trains_on_images_of_its_own(train):
    names = ("none", "basic", "strong", "rand", "trivial")
    cases = [("--augment", name) for name in names] + [("--vflip",), ("--erase", "0.5")]
    assert len(different_losses(train, *cases)) == 7


def test_flips_and_erasing_change_nothing_where_nothing_is_augmented(train):
    plain, other = (
        metrics(train("--augment", "none", *flags)[1]) for flags in (("--no-hflip",), ("--vflip", "--erase", "1"))
    )
    assert plain == other
