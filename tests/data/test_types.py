"""Splits, subsets and the stratified split."""

import pytest

from finetune.data.types import ImageSet, Split, Subset, channel_axis, stratified, with_validation
from finetune.errors import UserError


def test_each_class_gives_its_fraction_but_keeps_an_image_on_each_side():
    labels = [0] * 10 + [1] * 2 + [2] * 3
    for fraction, counts in ((0.2, [2, 1, 1]), (0.001, [1, 1, 1]), (0.999, [9, 1, 2])):
        train, val = stratified(labels, ["a", "b", "c"], fraction, seed=0)
        assert [sum(labels[k] == label for k in val) for label in range(3)] == counts
        assert sorted(train + val) == list(range(15))
    with pytest.raises(UserError, match="class 'b' has one image only"):
        stratified([0, 0, 1], ["a", "b"], 0.2, seed=0)


def test_another_class_changes_no_class_s_validation_images():
    _, before = stratified([0] * 10 + [1] * 10, ["ant", "cat"], 0.3, seed=3)
    _, after = stratified([0] * 10 + [2] * 10 + [1] * 5, ["ant", "bee", "cat"], 0.3, seed=3)
    assert [k for k in before if k < 10] == [k for k in after if k < 10]
    _, other = stratified([0] * 10 + [1] * 10, ["ant", "cat"], 0.3, seed=4)
    assert other != before


def test_a_split_to_validate_on_is_taken_from_train_only_where_there_is_none():
    splits = {"train": Split([f"{k}.jpg" for k in range(8)], [0, 1] * 4)}
    made = with_validation(splits, ["a", "b"], 0.25, seed=0)
    assert {name: len(split.items) for name, split in made.items()} == {"train": 6, "val": 2}
    assert sorted(made["train"].items + made["val"].items) == splits["train"].items
    assert with_validation(made, ["a", "b"], 0.5, seed=0) is made


def test_a_subset_copies_nothing_of_what_is_no_list():
    items = range(100, 110)
    split = Split(items, [k % 2 for k in range(10)]).subset([3, 1])
    assert isinstance(split.items, Subset)
    assert split.items.items is items
    assert (list(split.items), split.labels) == ([103, 101], [1, 1])


def test_digests_of_a_set_do_not_change_when_it_is_moved(tmp_path):
    def imageset(folder, sizes=(1, 2), labels=(0, 1)):
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{k}.jpg" for k in range(2)]
        for path, size in zip(paths, sizes, strict=True):
            path.write_bytes(b"x" * size)
        return ImageSet(["a", "b"], {"train": Split([str(path) for path in paths], list(labels))})

    first = imageset(tmp_path / "one")
    known = first.fingerprint(), first.sizes()
    moved = imageset(tmp_path / "two")
    assert (moved.fingerprint(), moved.sizes()) == known
    relabelled = imageset(tmp_path / "three", labels=(1, 0))
    assert relabelled.fingerprint() != known[0]
    resized = imageset(tmp_path / "four", sizes=(1, 3))
    assert (resized.fingerprint(), resized.sizes() == known[1]) == (known[0], False)
    (tmp_path / "one" / "0.jpg").rename(tmp_path / "one" / "new.jpg")
    first.splits["train"].items[0] = str(tmp_path / "one" / "new.jpg")
    assert first.fingerprint() != known[0]


def test_the_channels_of_an_array_are_found_first_or_last():
    cases = {(5, 7): (1, -1), (3, 5, 7): (3, 0), (1, 5, 7): (1, 0), (5, 7, 3): (3, 2), (5, 7, 1): (1, 2)}
    cases |= {(3, 5, 3): (3, 2), (5, 7, 4): (4, 2), (3, 7, 1): (1, 2)}
    for shape, expected in cases.items():
        assert channel_axis(shape) == expected, shape
    assert len(cases) == 8
