"""Files of every kind decode to upright tensors, and a file that does not decode is named."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from finetune.data import verify
from finetune.data.decode import load
from finetune.errors import UserError


def test_deep_grey_is_scaled_by_the_range_of_its_type(tmp_path):
    grey = np.linspace(0, 65535, 48, dtype=np.uint16).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert load(str(tmp_path / "deep.png"), 3).amax() == 255
    assert load(str(tmp_path / "deep.png"), 3)[:, 3, 0].tolist() == [int(grey[3, 0] / 257)] * 3
    for name in ("dark.png", "dark.tif", "dark.pgm"):  # modes I;16 and I: not scaled by their own maximum
        Image.fromarray(grey // 256).save(tmp_path / name)
        assert load(str(tmp_path / name), 3).amax() == 0, name
    Image.fromarray(np.full((6, 8), 70_000, np.int32)).save(tmp_path / "whole.tif")
    assert load(str(tmp_path / "whole.tif"), 3).amin() == 255
    for value, byte in ((1.0, 255), (0.01, 2)):
        Image.fromarray(np.full((6, 8), value, np.float32)).save(tmp_path / "floats.tif")
        assert load(str(tmp_path / "floats.tif"), 3).unique().tolist() == [byte]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_decode_to_colour_or_grey(tmp_path, mode):
    path = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (8, 6)).save(path)
    for channels in (1, 3):
        image = load(str(path), channels)
        assert (image.shape, image.dtype) == ((channels, 6, 8), torch.uint8)


def test_colour_becomes_luma_and_grey_three_equal_channels(tmp_path):
    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / "colour.png")
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert load(str(tmp_path / "colour.png"), 1).unique().tolist() == [luma]
    assert load(np.full((6, 8, 3), (200, 100, 50), np.uint8), 1).unique().item() == pytest.approx(luma, abs=1)
    Image.new("L", (8, 6), 77).save(tmp_path / "grey.png")
    assert load(str(tmp_path / "grey.png"), 3).unique().tolist() == [77]


def test_a_file_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert load(str(tmp_path / "turned.jpg"), 3).shape == (3, 8, 6)


def test_a_decoded_tensor_is_returned_unchanged():
    image = torch.zeros(3, 6, 8, dtype=torch.uint8)
    assert load(image, 3) is image


def test_a_file_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for name in ("gone", "bad"):
        with pytest.raises(UserError, match=rf"{name}\.jpg does not decode: "):
            load(str(tmp_path / f"{name}.jpg"), 3)


def test_jpegs_decode_as_pillow_decodes_them(tmp_path):
    """Within two levels: torchvision and Pillow have libjpegs of their own, which round differently."""
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


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "grey.jpg"])
def test_an_image_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 20 // 2 - 1)  # Pillow refuses twice as many
    monkeypatch.setattr("finetune.data.decode.decode_jpeg", None)
    path = str(tmp_path / name)
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(UserError, match=rf"{name} does not decode: .* exceeds limit"):
        load(path, 1 if "grey" in name else 3)
    with pytest.raises(UserError, match="exceeds limit"):
        verify.check([path], False)
