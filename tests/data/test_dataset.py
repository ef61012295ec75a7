"""Samples are pure functions of (seed, view, index)."""

import pytest
import torch

from finetune.config.settings import Images
from finetune.data import readers
from finetune.data.dataset import Draw, Samples
from finetune.data.transforms import training_transform
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def split(image_folder):
    return readers.read(Images(data=str(image_folder)), 3, seed=0).splits["train"]


def samples(split, seed=0):
    transform = training_transform(PREPROCESS, Images(), smallest_crop=0.08)
    return Samples(split, 3, transform, seed)


def test_augmentation_depends_on_seed_view_and_index_alone(split):
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
    assert torch.equal(torch.rand(3), expected)
