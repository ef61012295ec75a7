"""The audit finds what was put into a set, and nothing in a set without faults."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.audit import collection, findings, tree
from finetune.audit.brief import brief
from finetune.config.settings import Images
from finetune.data import readers

SIDE = 96


def photo(seed: int) -> Image.Image:
    """A coarse pattern with fine noise, unlike every other seed's."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(40, 210, (7, 7, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.BICUBIC)
    noise = random.integers(-30, 30, (SIDE, SIDE, 1))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """train/ with two classes of four images, val/ with two of two."""
    seed = 0
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(count):
                photo(seed).save(tmp_path / "data" / split / name / f"{k}.png")
                seed += 1
    return tmp_path / "data"


def read(folder):
    return readers.read(Images(data=str(folder), skip_bad_images=True), 3, seed=0)


def found_in(folder):
    data = collection.collect(read(folder), folder)
    return data, findings.find(data)


def test_nothing_is_found_in_a_set_without_faults(folder):
    assert found_in(folder)[1] == []
    assert tree.leftovers(folder) == []


def test_copies_are_told_by_split_and_class(folder):
    train, val = folder / "train", folder / "val"
    Image.open(train / "cat" / "0.png").save(val / "cat" / "leak.jpg")
    Image.open(train / "cat" / "1.png").transpose(Image.FLIP_LEFT_RIGHT).save(train / "cat" / "twin.png")
    shutil.copy(train / "cat" / "2.png", train / "dog" / "conflict.png")
    data, found = found_in(folder)
    assert [(one.kind, *(data.names[k] for k in one.images)) for one in found] == [
        ("leak", "train/cat/0.png", "val/cat/leak.jpg"),
        ("conflict", "train/cat/2.png", "train/dog/conflict.png"),
        ("duplicate", "train/cat/1.png", "train/cat/twin.png"),
    ]
    assert [one.text.rpartition(": ")[2] for one in found] == [
        "nearly the same picture", "the same file content", "nearly the same picture, mirrored",
    ]  # fmt: skip


FAULTS = {
    "uniform": lambda path: Image.new("RGB", (SIDE, SIDE), "teal").save(path.with_suffix(".png")),
    "dark": lambda path: photo(90).point(lambda value: value // 5).save(path.with_suffix(".png")),
    "bright": lambda path: photo(91).point(lambda value: 200 + value // 6).save(path.with_suffix(".png")),
    "blurry": lambda path: photo(92).filter(ImageFilter.GaussianBlur(4)).save(path.with_suffix(".png")),
    "narrow": lambda path: photo(93).resize((400, 90)).save(path.with_suffix(".png")),
    "small": lambda path: photo(94).resize((24, 24)).save(path.with_suffix(".png")),
    "disguised": lambda path: photo(95).save(path.with_suffix(".jpg"), "png"),
    "animated": lambda path: photo(96).save(path.with_suffix(".webp"), save_all=True, append_images=[photo(97)]),
    "undecodable": lambda path: path.with_suffix(".jpg").write_bytes(b"no image"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_image_is_found(folder, kind):
    FAULTS[kind](folder / "train" / "cat" / "fault")
    data, found = found_in(folder)
    assert [one.kind for one in found] == [kind]
    name = found[0].path or data.names[found[0].images[0]]
    assert name.startswith("train/cat/fault")
    assert found[0].text.startswith(name)


def test_every_kind_has_a_test():
    others = {"leak", "conflict", "duplicate", "label", "classes", "imbalance", "leftover"}
    assert FAULTS.keys() | others == findings.KINDS.keys()


def test_classes_that_differ_in_case_accents_or_form_are_found(tmp_path):
    names = ["Café", "cafe\u0301", "CAFE", "tea pot", "tea-pot", "milk"]
    for seed, name in enumerate(names * 2):
        (tmp_path / name).mkdir(exist_ok=True)
        photo(seed).save(tmp_path / name / f"{seed}.png")
    _, found = found_in(tmp_path)
    assert sorted(len(one.text.split(" and ")) for one in found if one.kind == "classes") == [2, 3]


def test_an_imbalance_is_found(folder):
    for seed in range(100, 150):
        photo(seed).save(folder / "train" / "dog" / f"{seed}.png")
    _, found = found_in(folder)
    assert [(one.kind, one.text) for one in found] == [("imbalance", "train: 54 images of 'dog', 4 of 'cat'")]


def test_what_is_not_read_is_found(folder):
    cat = folder / "train" / "cat"
    (cat / "notes.txt").write_text("a note")
    (cat / "old.gif").write_bytes(b"GIF89a")
    (cat / ".hidden.png").write_bytes(b"x")
    (cat / "empty.png").touch()
    (cat / "gone.png").symlink_to("nowhere.png")
    (cat / "loop").symlink_to(folder / "train")
    (folder / "train" / "stray.png").write_bytes((cat / "0.png").read_bytes())
    (folder / "val" / "cat" / "nothing").mkdir()
    (folder / ".cache").mkdir()
    expected = {
        ".cache": "is a hidden folder, and not read",
        "train/cat/.hidden.png": "is hidden, and not read",
        "train/cat/empty.png": "is empty",
        "train/cat/gone.png": "is a link to nowhere",
        "train/cat/loop": "links to a folder that is read already",
        "train/cat/notes.txt": "is not read: its extension is none of an image's",
        "train/cat/old.gif": "is not read: its extension is none of an image's",
        "train/stray.png": "is not read: it lies in no class folder",
        "val/cat/nothing": "is an empty folder",
    }
    assert dict(tree.leftovers(folder)) == expected


def test_arrays_are_looked_at_too(tmp_path):
    images = np.stack([np.asarray(photo(seed).resize((32, 32))) for seed in range(8)])
    images[5] = images[2]
    np.savez(
        tmp_path / "a.npz", x_train=images[:4], y_train=[0, 1] * 2, x_test=images[4:], y_test=[0, 1] * 2,
        x_val=images[6:] // 2, y_val=[0, 1],
    )  # fmt: skip
    imageset = read(tmp_path / "a.npz")
    data = collection.collect(imageset, None)
    leaks = [tuple(data.names[k] for k in one.images) for one in findings.find(data) if one.kind == "leak"]
    assert ("train/#2", "test/#1") in leaks


def test_a_copy_of_a_leaked_image_leaks_too(folder):
    Image.open(folder / "train" / "cat" / "1.png").save(folder / "val" / "cat" / "leak.jpg")
    shutil.copy(folder / "val" / "cat" / "leak.jpg", folder / "val" / "dog" / "again.jpg")
    assert brief(read(folder)).leaked == {"val": [2, 5]}


def test_a_run_is_told_in_three_lines(folder):
    assert list(brief(read(folder)).lines) == ["balance", "quality", "leaks"]
    assert brief(read(folder)).leaked == {"val": []}
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "val" / "cat" / "leak.png")
    shutil.copy(folder / "train" / "dog" / "1.png", folder / "train" / "dog" / "twin.png")
    FAULTS["uniform"](folder / "train" / "dog" / "fault")
    told = brief(read(folder))
    assert told.lines["balance"] == "4 to 6 training images of a class"
    assert told.lines["quality"].startswith("uniform, dark, over-exposed or blurry images: 1; copies within a split: 1")
    assert told.lines["leaks"].startswith("copies of training images: 1 of 5 in val/;")
    assert told.leaked == {"val": [2]}
    assert Counter(one.kind for one in found_in(folder)[1]) == {"leak": 1, "duplicate": 1, "uniform": 1}
