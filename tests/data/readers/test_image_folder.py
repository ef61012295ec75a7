"""Image folders: which files are read, how one folder is split, and messages for wrong folders."""

import os
import shutil

import pytest
from PIL import Image
from support import CLASSES, write_images

from finetune.config.settings import Images
from finetune.data import readers
from finetune.errors import UserError


def read(path, skip=False, seed=0, fraction=0.2):
    return readers.read(Images(data=str(path), val_fraction=fraction, skip_bad_images=skip), 3, seed)


def test_train_and_val_are_read_and_other_files_ignored(image_folder, tmp_path):
    top = tmp_path / "data"
    shutil.copytree(image_folder, top)
    (top / "train" / "red" / "notes.txt").write_text("x")
    (top / "train" / ".cache").mkdir()
    Image.new("P", (4, 4)).save(top / "train" / "red" / "broken.gif")
    (top / "train" / "red" / "more").mkdir()
    shutil.copy(top / "train" / "red" / "00.jpg", top / "train" / "red" / "more" / "DEEP.JPG")
    found = read(top)
    assert found.classes == list(CLASSES)
    assert len(found.splits["train"].items) == 22
    assert found.splits["train"].labels == [0] * 7 + [1] * 7 + [2] * 8
    assert len(found.splits["val"].items) == 9
    assert "test" not in found.splits


def test_a_test_split_is_read_where_there_is_one(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.copytree(image_folder / "val", tmp_path / "data" / "test")
    assert len(read(tmp_path / "data").splits["test"].items) == 9


@pytest.mark.parametrize("emptied", [False, True])
def test_a_test_split_may_lack_a_class(image_folder, tmp_path, emptied):
    top = tmp_path / "data"
    shutil.copytree(image_folder, top)
    shutil.copytree(image_folder / "val", top / "test")
    shutil.rmtree(top / "test" / "blue")
    if emptied:
        (top / "test" / "blue").mkdir()
    found = read(top)
    assert found.splits["test"].labels == [1] * 3 + [2] * 3
    assert (found.lacking("test"), found.lacking("val")) == (["blue"], [])
    for path in (top / "test").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image of .*test decodes"):
        read(top, skip=True)
    for path in (top / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"no image in .*test/"):
        read(top)


def test_one_folder_is_split_stratified_by_the_seed(image_folder):
    first, again, other = (read(image_folder / "train", seed=seed, fraction=0.3) for seed in (0, 0, 1))
    assert first == again
    assert first.splits["val"] != other.splits["val"]
    for found in (first, other):
        assert [found.splits["val"].labels.count(label) for label in range(3)] == [2, 2, 2]
        assert [found.splits["train"].labels.count(label) for label in range(3)] == [5, 5, 5]
        assert not set(found.splits["val"].items) & set(found.splits["train"].items)
    assert len(read(image_folder / "train", fraction=0.001).splits["val"].items) == 3, "at least one of each class"


def test_float_images_beyond_0_to_1_are_named(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    for name, value in (("good", 1.0), ("bytes", 255.0)):
        Image.new("F", (8, 8), value).save(tmp_path / "data" / "train" / "red" / f"{name}.tif")
    with pytest.raises(UserError, match=r"1 image does not decode:\n.*bytes.tif: .*\[255, 255\]; floats must lie in"):
        read(tmp_path / "data")


def test_a_truncated_image_is_named_and_can_be_skipped(image_folder, tmp_path):
    top = tmp_path / "data"
    shutil.copytree(image_folder, top)
    whole = (top / "train" / "red" / "03.jpg").read_bytes()
    (top / "train" / "red" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (top / "val" / "blue" / "01.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 images do not decode:\n.*train/red/03.jpg: .*\n.*val/blue/01.jpg: "):
        read(top)
    found = read(top, skip=True)
    assert len(found.bad) == 2
    assert (len(found.splits["train"].items), len(found.splits["val"].items)) == (20, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: shutil.rmtree(top), r"--data .*data does not exist. .*Sets known by name: caltech101"),
        (lambda top: (shutil.rmtree(top), top.write_text("x")), r"is a file; it may be"),
        (lambda top: (shutil.rmtree(top), top.mkdir()), r"holds no class folders"),
        (lambda top: shutil.rmtree(top / "val"), r"has train/ but no val/.*--data .*/train"),
        (lambda top: shutil.rmtree(top / "train"), r"has val/ but no train/"),
        (lambda top: shutil.rmtree(top / "val" / "red"), r"train/ has a class that val/ lacks: red"),
        (lambda top: shutil.rmtree(top / "train" / "red"), r"val/ has a class that train/ lacks: red"),
        (lambda top: [p.unlink() for p in (top / "train" / "red").iterdir()], r"no image in .*train/red"),
        (
            lambda top: [shutil.rmtree(top / s / c) for s in ("train", "val") for c in ("red", "blue")],
            r"one class only \('green'\)",
        ),
    ],
)
def test_a_wrong_folder_gets_one_message_that_names_what_is_wrong(image_folder, tmp_path, change, message):
    top = tmp_path / "data"
    shutil.copytree(image_folder, top)
    change(top)
    with pytest.raises(UserError, match=message):
        read(top)


@pytest.mark.parametrize("layout", ["splits", "one folder"])
def test_a_class_of_which_no_image_decodes_is_named(image_folder, tmp_path, layout):
    top = tmp_path / "data"
    shutil.copytree(image_folder if layout == "splits" else image_folder / "train", top)
    folder = top / "train" / "red" if layout == "splits" else top / "red"
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"no image of {folder} decodes: fix them or delete the class\.$"):
        read(top, skip=True)


def test_a_folder_around_the_set_gets_a_suggestion(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "around" / "data")
    with pytest.raises(UserError, match=r"one class only \('data'\).* Did you mean --data .*around/data\?$"):
        read(tmp_path / "around")


def test_splits_under_other_names_are_not_taken_for_classes(image_folder, tmp_path):
    for train, val in (("Train", "Val"), ("training", "validation"), ("train", "valid")):
        top = tmp_path / train / val
        shutil.copytree(image_folder / "train", top / train)
        shutil.copytree(image_folder / "val", top / val)
        with pytest.raises(UserError, match="name its splits train, val and, if any, test"):
            read(top)


def test_links_back_up_the_tree_and_hidden_folders_are_not_followed(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "again").symlink_to(tmp_path / "data" / "train" / "red")
    shutil.copytree(image_folder / "val" / "red", tmp_path / "data" / "train" / "red" / ".ipynb_checkpoints")
    assert len(read(tmp_path / "data").splits["train"].labels) == 21


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_images(tmp_path / "data", 3)
    for name in ("01.jpg", "02.jpg"):
        (tmp_path / "data" / "red" / name).unlink()
    with pytest.raises(UserError, match=r"class 'red' has one image only"):
        read(tmp_path / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "red").chmod(0)
    with pytest.raises(UserError, match=r"train/red cannot be read"):
        read(tmp_path / "data")
    (tmp_path / "data" / "train" / "red").chmod(0o755)
