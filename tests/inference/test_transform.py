"""The evaluation transform takes images of any kind."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from finetune.errors import UserError
from finetune.inference.transform import make_transform
from finetune.models.architectures import Preprocess

RGB = Preprocess(36, 32, "bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
GREY = Preprocess(36, 32, "bilinear", mean=(0.5,), std=(0.2,))


@pytest.fixture
def image(tmp_path):
    """A path of a colour image."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bee.png")
    return tmp_path / "bee.png"


def test_paths_pil_images_arrays_and_tensors_give_the_same(image):
    picture = Image.open(image)
    x = functional.pil_to_tensor(picture)
    views = [str(image), image, picture, np.asarray(picture), x, functional.to_image(picture)]
    whole = make_transform(RGB)(views)
    assert whole.shape == (6, 3, 32, 32)
    assert whole.dtype == torch.float32
    assert all(torch.equal(view, whole[0]) for view in whole[1:])
    assert torch.equal(make_transform(RGB)(image), whole[:1])
    torch.testing.assert_close(make_transform(RGB)(x / 255), whole[:1], rtol=0, atol=0.02)  # resized before rounding


def test_an_image_becomes_square_as_the_model_was_trained(image):
    views = [make_transform(replace(RGB, fit=fit))(image) for fit in ("crop", "squash", "pad")]
    assert {view.shape for view in views} == {(1, 3, 32, 32)}
    border = torch.cat([views[2][..., :2], views[2][..., -3:]], 3)  # of 48 × 40, 26 columns are left
    assert border.abs().max() < 0.01
    assert not any(torch.equal(one, other) for one, other in combinations(views, 2))


def test_channels_are_converted(image):
    x = functional.pil_to_tensor(Image.open(image))
    grey = functional.rgb_to_grayscale(x)
    assert torch.equal(make_transform(GREY)(x), make_transform(GREY)(grey))
    assert torch.equal(make_transform(RGB)(grey), make_transform(RGB)(grey.expand(3, -1, -1)))


def test_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    transform = make_transform(RGB)
    with pytest.raises(UserError, match="does not decode"):
        transform(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match="the image has 4"):
        transform(torch.zeros(4, 40, 40))
    with pytest.raises(ValueError, match=r"not \(1, 3, 40, 40\) torch\.float32"):
        transform(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        transform(torch.zeros(3, 40, 40, dtype=torch.int64))
