"""Copies are found however they were made, distinct images are not called copies, and the search is exhaustive."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.data import duplicates, facts


def picture(seed):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (7, 9, 3), dtype=np.uint8)).resize((180, 140), Image.BICUBIC)


def compressed(image, quality):
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file)


COPIES = {
    "compressed": lambda image: compressed(image, 10),
    "halved": lambda image: image.resize((90, 70)),
    "squeezed": lambda image: image.resize((100, 100)),
    "grey": lambda image: image.convert("L"),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
}


@pytest.mark.parametrize("name", COPIES)
def test_an_altered_copy_is_found_among_other_images(name):
    images = [picture(seed) for seed in range(12)]
    images.append(COPIES[name](images[3]))
    found = duplicates.copies(np.stack([facts.of_image(image) for image in images]))
    assert [(pair.first, pair.second, pair.turn, pair.exact) for pair in found] == [(3, 12, 0, False)]


def test_mirrored_and_turned_copies_are_found_and_named():
    seen = 0
    for k, turn in enumerate(facts.TURNS[1:], 1):
        images = [picture(0), picture(1), picture(0).transpose(turn)]
        (pair,) = duplicates.copies(np.stack([facts.of_image(image) for image in images]))
        assert (pair.first, pair.second, pair.turn) == (0, 2, k)
        seen += 1
    assert seen == 7


def test_files_of_the_same_content_are_paired_with_the_first():
    found = duplicates.copies(np.stack([facts.of_image(picture(seed)) for seed in (0, 1, 0, 2, 0)]))
    assert [(pair.first, pair.second, pair.exact) for pair in found] == [(0, 2, True), (0, 4, True)]


def test_the_search_ends_where_there_are_too_many_copies(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_COPIES", 10)
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    frames = [compressed(picture(0), quality) for quality in range(60, 90)]
    found = duplicates.copies(np.stack([facts.of_image(frame) for frame in frames]))
    assert 10 <= len(found) < 14, "of 435 pairs"


def test_uniform_images_of_different_content_are_no_copies():
    noise = np.random.default_rng(0).integers(0, 2, (20, 40, 40, 3), dtype=np.uint8)
    found = duplicates.copies(np.stack([facts.of_image(Image.fromarray(100 + one)) for one in noise]))
    assert found == []


@pytest.mark.parametrize("most", [1, 100, 1 << 22])
def test_the_search_finds_every_pair_that_comparing_all_finds(monkeypatch, most):
    monkeypatch.setattr(duplicates, "MOST", most)
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 63, (60, 8), dtype=np.uint64)
    for row in range(1, 60, 3):  # a few bits beside another row's hash
        bits = random.choice(64, row % 7, replace=False)
        hashes[row, 0] = hashes[row - 1, row % 8] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
    expected = {
        (turn, i, j)
        for turn in range(8)
        for i in range(60)
        for j in range(i + 1, 60)
        if bin(int(hashes[i, turn] ^ hashes[j, 0])).count("1") <= 4
    }
    found = {
        (turn, i, j)
        for turn, first, second in duplicates._near(hashes)
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    }
    assert found == expected
    assert len(expected) >= 10
