"""Facts of an image are the same for a file and for its pixels, and say what the eye sees."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.data import facts


@pytest.fixture
def photo():
    """An image with coarse and fine structure, 90 × 120."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(40, 210, (6, 8, 3), dtype=np.uint8)).resize((120, 90), Image.BICUBIC)
    fine = random.integers(-30, 30, (90, 120, 1))
    return Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "bmp", "ppm"])
def test_a_file_has_the_facts_of_its_pixels(photo, tmp_path, extension):
    photo.save(tmp_path / f"a.{extension}", quality=95)
    found, expected = facts.of_file(str(tmp_path / f"a.{extension}")), facts.of_image(photo)
    assert (found["width"], found["height"], found["mode"], found["frames"]) == (120, 90, b"RGB", 1)
    assert found["format"].item().decode().startswith({"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper()))
    assert bin(int(found["hashes"][0] ^ expected["hashes"][0])).count("1") <= 2
    for name in ("darkest", "lightest", "contrast"):
        assert abs(found[name] - expected[name]) < 4, name


def test_an_image_turned_by_exif_is_compared_upright(photo, tmp_path):
    for orientation, turn in ((3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.transpose(turn).save(tmp_path / "a.png", exif=exif)
        found = facts.of_file(str(tmp_path / "a.png"))
        assert found["orientation"] == orientation
        assert bin(int(found["hashes"][0] ^ facts.of_image(photo)["hashes"][0])).count("1") <= 2


def test_each_turn_has_the_hash_of_the_turned_image(photo):
    whole = facts.of_image(photo)
    assert len(facts.TURNS) == 8
    for k, turn in enumerate(facts.TURNS[1:], 1):
        turned = facts.of_image(photo.transpose(turn))
        assert bin(int(whole["hashes"][k] ^ turned["hashes"][0])).count("1") <= 2, turn


def test_blur_lowers_the_sharpness_and_contrast_does_not(photo):
    sharp = facts.of_image(photo)["sharpness"]
    assert facts.of_image(photo.filter(ImageFilter.GaussianBlur(3)))["sharpness"] < 0.9 < sharp
    paler = photo.point(lambda value: 100 + value // 4)
    assert facts.of_image(paler)["sharpness"] == pytest.approx(sharp, rel=0.1)


def test_odd_kinds_of_images_have_facts(tmp_path):
    kinds = {
        "palette": Image.effect_noise((40, 30), 50).convert("P"),
        "cmyk": Image.new("CMYK", (40, 30), (0, 128, 0, 0)),
        "alpha": Image.new("RGBA", (40, 30), (255, 0, 0, 0)),
        "deep": Image.fromarray(np.full((30, 40), 60_000, np.uint16)),
        "bits": Image.new("1", (40, 30), 1),
        "pixel": Image.new("RGB", (1, 1), "red"),
    }
    seen = {name: facts.of_image(image) for name, image in kinds.items()}
    assert len(seen) == 6
    assert seen["alpha"]["darkest"] == 76, "transparency is dropped, as in training: this is red"
    assert seen["deep"]["darkest"] == pytest.approx(233, abs=1)
    assert seen["pixel"]["sharpness"] == 0
