"""CSV files: the splits that they name, and wrong rows."""

import csv
import shutil

import pytest

from finetune.config.settings import Images
from finetune.data import readers
from finetune.errors import UserError


def read(path, channels=3, **settings):
    return readers.read(Images(data=str(path), **settings), channels, seed=0)


def table(folder, image_folder, rows):
    shutil.copytree(image_folder, folder / "images", dirs_exist_ok=True)
    with (folder / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "set.csv"


def test_a_csv_file_gives_the_splits_it_names_or_is_split(image_folder, tmp_path):
    rows = [
        (str(path.relative_to(image_folder.parent)).replace(image_folder.name, "images"), path.parent.name, split)
        for split in ("train", "val")
        for path in sorted((image_folder / split).rglob("*.jpg"))
    ]
    found = read(table(tmp_path, image_folder, [("path", "label", "split"), *rows]))
    assert found.classes == ["blue", "green", "red"]
    assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 21, "val": 9}
    found = read(table(tmp_path, image_folder, [("path", "label"), *(row[:2] for row in rows)]))
    assert {name: len(split.labels) for name, split in found.splits.items()} == {"train": 24, "val": 6}


def test_csv_rows_that_point_nowhere_are_listed(image_folder, tmp_path):
    rows = [("path", "label"), *((f"images/{k}.jpg", "a") for k in range(7))]
    with pytest.raises(UserError, match=r"7 of 7 paths point nowhere: images/0.jpg, .*images/4.jpg, …$"):
        read(table(tmp_path, image_folder, rows))
    with pytest.raises(UserError, match="columns path and label"):
        read(table(tmp_path, image_folder, [("file", "class"), ("a", "b")]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("path", "label"), ("images/train/red/00.jpg",), ("images/train/red/01.jpg", "a")],
            "line 2: 1 cells in the row, 2 in the header",
        ),
        ([("path", "label"), ("", "a")], "1 of 1 rows have no path or no label"),
        ([("path", "label", "split"), ("images/train/red/00.jpg", "a", "dev")], "split is train, val or test, not dev"),
        ([("path", "label"), ("images/train/red/00.jpg", "a")], "fewer than two classes"),
        (
            [
                ("path", "label", "split"),
                *((f"images/train/{name}/00.jpg", name, "train") for name in ("red", "blue")),
                ("images/val/green/00.jpg", "green", "val"),
            ],
            "no training row has the label 'green'",
        ),
    ],
)
def test_wrong_rows_are_named(image_folder, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, image_folder, rows))


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "set.csv").write_bytes("path,label\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"set\.csv cannot be read as CSV in UTF-8"):
        read(tmp_path / "set.csv")


def test_a_test_split_may_lack_a_class(image_folder, tmp_path):
    paths = [(f"images/{path.relative_to(image_folder)}", path.parent.name) for path in image_folder.rglob("*.jpg")]
    rows = [(path, label, "test" if "val" in path else "train") for path, label in sorted(paths)]
    rows = [row for row in rows if row[1:] != ("red", "test")]
    found = read(table(tmp_path, image_folder, [("path", "label", "split"), *rows]))
    assert found.lacking("test") == ["red"]
