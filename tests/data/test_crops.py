"""`--crop-scale auto`: crops are mild where images are enlarged to twice their size or more."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.config.settings import Images
from finetune.data import crops
from finetune.data.types import Split
from finetune.errors import UserError
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
AUTO = Images(crop_scale="auto")


def arrays(*shapes):
    return Split([np.zeros(shape, np.uint8) for shape in shapes], [0] * len(shapes))


@pytest.mark.parametrize(("side", "expected"), [(15, 0.7), (16, 0.7), (17, 0.35), (400, 0.35)])
def test_crops_are_mild_where_the_shorter_side_is_at_least_doubled(side, expected):
    assert crops.smallest(AUTO, arrays((side, 500, 3)), PREPROCESS) == expected
    assert crops.smallest(Images(crop_scale=0.2), arrays((side, 500, 3)), PREPROCESS) == 0.2


def test_images_of_every_kind_have_a_shorter_side(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (40, 9)).save(file)
    items = [str(file), Image.new("L", (9, 12)), np.zeros((1, 9, 30)), np.zeros((9, 11)), torch.zeros(3, 9, 10)]
    sides = [crops.typical_side(Split([item], [0])) for item in items]
    assert sides == [9] * 5


def test_the_typical_side_is_the_median_of_images_spread_over_the_split():
    few_large = arrays(*[(8, 8)] * 300, *[(500, 500)] * 200)
    assert crops.typical_side(few_large) == 8
    assert crops.typical_side(arrays(*[(8, 8)] * 200, *[(500, 500)] * 300)) == 500


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png does not decode"):
        crops.typical_side(Split([str(tmp_path / "gone.png")], [0]))
