"""Image grids show every kind of image, and which images they choose."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.reporting import image_grids
from finetune.reporting.palette import ORANGE


@pytest.mark.parametrize(
    ("labels", "count", "chosen"),
    [
        ([0, 0, 1, 1, 2, 2], 3, [0, 2, 4]),  # one of each class first
        ([0, 0, 1, 1, 2, 2], 5, [0, 2, 4, 1, 3]),
        ([0, 0, 0], 5, [0, 1, 2]),
        (list(range(10)), 5, [0, 2, 4, 6, 8]),
    ],
)
def test_images_are_chosen_from_as_many_classes_as_possible(labels, count, chosen):
    assert image_grids._spread(labels, count) == chosen


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_any_channels_and_type_are_drawn_and_errors_framed(tmp_path, channels, dtype):
    images = torch.full((channels, 8, 8), 128 if dtype == torch.uint8 else 128 / 255, dtype=dtype)
    for framed in (False, True):
        pictures = [image_grids._Picture(images, "90% a class with a long name\n| another", framed)] * 3
        image_grids._grid(tmp_path / f"{framed}.png", 2, "A title", pictures)
    plain, with_frames = (np.asarray(Image.open(tmp_path / f"{framed}.png")) for framed in (False, True))
    assert plain.shape == with_frames.shape
    grey = (plain == 128).all(2).sum() - 3 * image_grids.TILE**2
    assert 0 <= grey < 50, "three grey pictures, and a few pixels of letters"
    orange = [int(ORANGE[k : k + 2], 16) for k in (1, 3, 5)]
    assert not (plain == orange).all(2).any()
    assert (with_frames == orange).all(2).sum() > 3 * 4 * 4 * image_grids.TILE


def test_a_grid_is_a_jpeg_where_its_name_says_so(tmp_path):
    picture = image_grids._Picture(torch.zeros(3, 8, 8), "black")
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        image_grids._grid(tmp_path / f"grid{suffix}", 1, "", [picture])
        assert Image.open(tmp_path / f"grid{suffix}").format == kind


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("value", [0, 255])
def test_hot_and_cold_differ_on_any_picture(channels, value):
    heat = torch.linspace(0, 1, 32).repeat(32, 1)
    shown = image_grids.overlay(torch.full((channels, 32, 32), value, dtype=torch.uint8), heat)
    assert shown.size == (32, 32)
    luma = np.asarray(shown.convert("L"), int)[0]
    assert (np.diff(luma) >= 0).all(), "brighter is hotter"
    assert luma[-1] - luma[0] > 70
    assert image_grids.overlay(Image.new("RGB", (90, 60), "white"), heat).size == (90, 60)
