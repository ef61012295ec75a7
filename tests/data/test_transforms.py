"""Transforms give torchvision's values."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import different_losses, metrics
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from finetune.data.decode import load
from finetune.data.transforms import RandomResizedCrop, evaluation_transform, mixing, to_input, training_transform
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


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("augment", ["none", "basic", "strong", "rand", "trivial"])
def test_every_augmentation_gives_the_input_s_size_and_keeps_the_type(augment, kind):
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    image = image if kind == torch.uint8 else image / 255
    transform = training_transform(PREPROCESS, augment, 0.08, hflip=True)
    views = [transform(image) for _ in range(4)]
    assert {(view.shape, view.dtype) for view in views} == {((3, 32, 32), kind)}
    assert all(torch.equal(view, views[0]) for view in views) == (augment == "none")


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


@pytest.mark.parametrize("flag", ["--mixup", "--cutmix"])
def test_mixing_is_seeded_per_image_and_workers_change_nothing(train, flag):
    flags = ("--recipe", "finetune", "--batch-size", "11")
    plain = metrics(train(*flags)[1])
    mixed = [metrics(train(*flags, flag, "1.0", "--workers", workers)[1]) for workers in ("0", "2")]
    assert mixed[0] == mixed[1]
    assert mixed[0][0]["train_loss"] != plain[0]["train_loss"]


def test_each_augmentation_trains_on_images_of_its_own(train):
    names = ("none", "basic", "strong", "rand", "trivial")
    assert len(different_losses(train, *(("--augment", name) for name in names))) == 5
