"""The image sets of the benchmarks."""

import csv
from collections import Counter

import pytest
from PIL import Image
from support import write_images

from benchmarks import image_sets
from finetune.config.settings import Images
from finetune.data import readers
from finetune.errors import UserError


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def caltech(tmp_path):
    """Two classes of 40 images each."""
    write_images(tmp_path / "caltech", 40, ("ant", "bee"))
    return tmp_path / "caltech"


def test_the_original_validation_images_test_and_a_sixth_of_each_class_validates(image_folder, tmp_path):
    rows = rows_of(image_sets.make("ants_bees", image_folder, tmp_path / "sets"))
    counts = Counter((row["label"], row["split"]) for row in rows)
    assert len(counts) == 9
    for name in ("blue", "green", "red"):
        assert [counts[name, split] for split in ("train", "val", "test")] == [5, 2, 3]
    assert {row["path"] for row in rows if row["split"] == "test"} == {str(p) for p in image_folder.glob("val/*/*")}


def test_a_fifth_of_caltech_tests_and_a_tenth_of_the_rest_validates(caltech, tmp_path):
    rows = rows_of(image_sets.make("caltech80", caltech, tmp_path / "sets"))
    assert Counter(row["split"] for row in rows) == {"train": 58, "val": 6, "test": 16}
    assert len({row["path"] for row in rows}) == 80


def test_few_images_of_each_class_train(caltech, tmp_path):
    rows = rows_of(image_sets.make("caltech15", caltech, tmp_path / "sets"))
    counts = Counter((row["label"], row["split"]) for row in rows)
    assert [counts["bee", split] for split in ("train", "val", "test")] == [15, 5, 20]
    assert len({row["path"] for row in rows}) == len(rows) == 80


def test_tiny_images_are_squares_of_32_pixels_whose_paths_follow_the_file(caltech, tmp_path):
    write_images(caltech / "more", 70, ("wasp",))
    (caltech / "more" / "wasp").rename(caltech / "wasp")
    file = image_sets.make("tiny10", caltech, tmp_path / "sets")
    rows = rows_of(file)
    assert Counter(row["split"] for row in rows if row["label"] == "wasp") == {"train": 50, "val": 15, "test": 5}
    pictures = [Image.open(file.parent / row["path"]) for row in rows]
    assert {picture.size for picture in pictures} == {(32, 32)}
    assert len(pictures) == 150
    moved = file.parent.rename(tmp_path / "moved") / file.name
    assert len(readers.read(Images(data=str(moved)), 3, 0).splits["train"].labels) == 130


def test_species_of_beetles_are_drawn_with_separate_individuals(monkeypatch, tmp_path):
    monkeypatch.setattr(image_sets.beetles, "SPECIES", {"target": {"aurelia": 0}, "source": {"albina": 10}})
    rows = rows_of(image_sets.make("beetles70", None, tmp_path))
    counts = Counter((row["label"], row["split"]) for row in rows)
    assert [counts["albina", split] for split in ("train", "val", "test")] == [12, 4, 20]
    assert len({row["path"].rpartition("/")[2] for row in rows}) == 36, "a species' individuals"


def test_a_set_is_the_same_each_time(caltech, tmp_path):
    files = [image_sets.make("caltech15", caltech, tmp_path / name) for name in ("one", "other", "one")]
    assert len({file.read_text() for file in files}) == 1


def test_a_file_that_lists_other_images_is_not_overwritten(caltech, tmp_path):
    file = image_sets.make("caltech80", caltech, tmp_path)
    before = file.read_text()
    (caltech / "ant" / "00.jpg").unlink()
    with pytest.raises(UserError, match="other images"):
        image_sets.make("caltech80", caltech, tmp_path)
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["ants_bees", "caltech80", "tiny10"])
def test_a_folder_without_the_images_is_a_mistake(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="does not hold the images"):
        image_sets.make(name, tmp_path / "empty", tmp_path / "sets")
    with pytest.raises(UserError, match="is no folder"):
        image_sets.make(name, tmp_path / "missing", tmp_path / "sets")
