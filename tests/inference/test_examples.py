"""Images to calibrate and to compare on: equal numbers of each class, none in both, labels from folders."""

from collections import Counter
from types import SimpleNamespace

import pytest
from support import CLASSES, write_model

from finetune.inference import examples
from finetune.inference.examples import Examples
from finetune.models import model_folder

OPENED = SimpleNamespace(classes=["a", "b", "c"])


def test_calibration_has_as_many_images_of_each_class():
    labels = [0] * 50 + [1] * 5 + [2] * 20
    given = Examples(OPENED, [f"{k}" for k in range(75)], labels, "images")
    chosen = given.stratified(21)
    assert Counter(chosen.labels) == {0: 8, 1: 5, 2: 8}
    assert chosen.items == given.stratified(21).items
    assert len(given.stratified(100)) == 75
    assert [given.labels[int(item)] for item in chosen.items] == chosen.labels


def test_given_images_are_divided_and_folders_with_classes_names_are_labels():
    paths = [f"x/{name}/{k}.jpg" for name in "abc" for k in range(6)]
    given = examples.of_files(OPENED, paths)
    assert given.labels == [0] * 6 + [1] * 6 + [2] * 6
    calibration, compared = given.divided(64)
    assert Counter(calibration.labels) == Counter(compared.labels) == {0: 3, 1: 3, 2: 3}
    assert {*calibration.items, *compared.items} == set(paths)
    assert len(given.divided(6)[1]) == 12
    assert examples.of_files(OPENED, [*paths, "x/other/0.jpg"]).labels is None


def test_a_selection_is_spread_over_all_images():
    given = Examples(OPENED, list(range(2000)), None, "images")
    assert given.spread(1000).items[-1] == 1998
    assert len(given.spread(9999)) == 2000


def test_the_images_of_a_run_have_its_labels(trained):
    opened = model_folder.load(trained / "fast")
    found = examples.of_run(opened)
    assert {name: len(part) for name, part in found.items()} == {"train": 21, "val": 9}
    batches = list(found["val"].batches(4))
    assert [(images.shape, len(labels)) for images, labels in batches] == [((n, 3, 32, 32), n) for n in (4, 4, 1)]
    assert opened.classes == list(CLASSES)


@pytest.mark.parametrize(("channels", "kind"), [(1, "built-in images"), (5, "noise images")])
def test_without_a_run_there_are_other_images(tmp_path, channels, kind):
    write_model(tmp_path / "model", in_channels=channels)
    opened = model_folder.load(tmp_path)
    assert examples.of_run(opened) is None
    given = examples.built_in(opened, 3)
    assert (given.kind, given.labels, given.tensor(8).shape) == (kind, None, (3, channels, 32, 32))
