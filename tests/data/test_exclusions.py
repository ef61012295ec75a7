"""--exclude leaves images out and relabels them, moves none to another split, and touches no file."""

import os

import numpy as np
import pytest
from support import write_images

from finetune.audit import fix_list
from finetune.config.settings import Images
from finetune.data import readers
from finetune.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data", 8)
    return tmp_path / "data"


def read(folder, *rows, **settings):
    file = folder.parent / "list.csv"
    file.write_text("\n".join(["path,action,label,new_label,reason", *rows]) + "\n")
    return readers.read(Images(data=str(folder), exclude=file, **settings), 3, seed=0)


def names(imageset, split):
    images = imageset.splits[split]
    return {
        path.rpartition("data/")[2]: imageset.classes[label]
        for path, label in zip(images.items, images.labels, strict=True)
    }


def test_images_are_left_out_and_relabelled_and_the_others_stay_in_their_split(folder):
    whole = readers.read(Images(data=str(folder)), 3, seed=0)
    (gone, *_), (other, *_) = names(whole, "train"), names(whole, "val")
    found = read(folder, f"{gone},remove,,,", f"{other},relabel,blue,red,")
    assert names(found, "train") == {name: cls for name, cls in names(whole, "train").items() if name != gone}
    assert names(found, "val") == names(whole, "val") | {other: "red"}
    assert (found.excluded, found.relabelled) == (1, 1)
    assert len(list(folder.rglob("*.jpg"))) == 24


def test_a_file_that_does_not_decode_may_be_on_the_list(folder):
    (folder / "red" / "03.jpg").write_bytes(b"no image")
    found = read(folder, "red/03.jpg,remove,,,")
    assert found.excluded == 1
    (folder / "red" / "04.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"04\.jpg"):
        read(folder, "red/03.jpg,remove,,,")


def test_images_of_arrays_go_by_split_and_position(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"x_train": random.integers(0, 255, (8, 9, 9, 3), dtype=np.uint8), "y_train": np.arange(8) % 2}
    arrays |= {"x_test": arrays["x_train"][:4], "y_test": arrays["y_train"][:4]}
    np.savez(tmp_path / "data.npz", **arrays)
    file = tmp_path / "list.csv"
    file.write_text("path,action,new_label\ntest/#1,remove,\ntest/#0,relabel,1\n")
    found = readers.read(Images(data=str(tmp_path / "data.npz"), exclude=file), 3, seed=0)
    assert found.splits["test"].labels == [1, 0, 1]
    assert np.array_equal(found.splits["test"].items[1], arrays["x_test"][2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["red/00.jpg,drop,,,"], r"list\.csv, line 2: needs a path and the action remove, or relabel"),
        (["red/00.jpg,relabel,red,,"], r"line 2: needs"),
        (["red/00.jpg,relabel,red,violet,"], "there is no class 'violet'"),
        (["violet/00.jpg,remove,,,"], "names no image of the data"),
        ([f"red/{k:02}.jpg,remove,,," for k in range(8)], "leaves no image of red in train"),
    ],
)
def test_a_mistake_in_the_list_is_named(folder, rows, message):
    with pytest.raises(UserError, match=message):
        read(folder, *rows)


def test_a_list_that_is_missing_or_no_text_is_named(folder, tmp_path):
    (tmp_path / "list.bin").write_bytes(b'"open')
    for name, what in {"none.csv": ": there is no such file", "list.bin": " cannot be read as CSV"}.items():
        with pytest.raises(UserError, match=f"--exclude .*{name}{what}"):
            readers.read(Images(data=str(folder), exclude=tmp_path / name), 3, seed=0)


def test_a_name_that_is_not_utf_8_goes_through_the_list(folder, tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    (folder / "red" / "00.jpg").rename(folder / "red" / name)
    fix_list.write(tmp_path / "list.csv", [fix_list.Fix(f"red/{name}", "remove", "red", "", "a test")])
    found = readers.read(Images(data=str(folder), exclude=tmp_path / "list.csv"), 3, seed=0)
    assert found.excluded == 1
    assert not any(name in path for split in found.splits.values() for path in split.items)
