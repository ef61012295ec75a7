"""Image sets with fixed train, validation and test images, as CSV files that our readers and other tools read alike.

One comes from the folder of ants and bees, three from that of Caltech-101, two are drawn by this project. The
splits are drawn by fixed seeds, and are the same on every machine.
"""

import csv
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from finetune.data.image_files import is_image
from finetune.errors import UserError
from finetune.starter import images as beetles

Row = tuple[Path, str, str]  # path, label, split
HELD_OUT = 6  # each sixth training image of a class validates where only training and test images are given


def classes_of(folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder, sorted; none where the folder is missing."""
    homes = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {
        home.name: sorted(path for path in home.iterdir() if is_image(path.name))
        for home in homes
        if home.is_dir() and not home.name.startswith(".")
    }
    return {name: paths for name, paths in found.items() if paths}


def test_on_val(folder: Path) -> list[Row]:
    """val/ becomes the test split, and each sixth image of each class in train/ the validation split."""
    rows = [(path, name, "test") for name, paths in classes_of(folder / "val").items() for path in paths]
    for name, paths in classes_of(folder / "train").items():
        rows += [(path, name, "train" if k % HELD_OUT else "val") for k, path in enumerate(paths)]
    return rows


def random_fifth(folder: Path) -> list[Row]:
    """Caltech-101 as it is often reported: a random 80 to 20 split at seed 42; the last tenth of the 80 validates."""
    samples = [(path, name) for name, paths in classes_of(folder).items() for path in paths]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(42)).tolist()
    test = len(order) - len(order) // 5
    val = test - test // 10
    ends = {"train": order[:val], "val": order[val:test], "test": order[test:]}
    return [(*samples[k], split) for split, chosen in ends.items() for k in chosen]


def few_shot(folder: Path) -> list[Row]:
    """15 images of each class to train, 5 to validate, up to 25 to test."""
    return _split(classes_of(folder), {"train": 15, "val": 5, "test": 25})


def _split(classes: dict[str, list[Path]], counts: dict[str, int]) -> list[Row]:
    """Shuffle each class and deal its images out to the splits."""
    rng, rows = random.Random(7), []
    for name, paths in classes.items():
        shuffled, first = rng.sample(paths, len(paths)), 0
        for split, count in counts.items():
            rows += [(path, name, split) for path in shuffled[first : first + count]]
            first += count
    return rows


def write_tiny(folder: Path, home: Path) -> None:
    """Ten large classes of Caltech-101, cropped to a square and shrunk to 32 × 32 pixels: 50, 15 and 60 images each."""
    classes = classes_of(folder)
    objects = [name for name in classes if name not in ("Faces_easy", "BACKGROUND_Google")]  # Faces again; no object
    large = sorted(objects, key=lambda name: -len(classes[name]))[:10]
    counts = {"train": 50, "val": 15, "test": 60}
    for path, name, split in _split({name: classes[name] for name in large}, counts):
        picture = Image.open(path).convert("RGB")
        side, (width, height) = min(picture.size), picture.size
        left, top = (width - side) // 2, (height - side) // 2
        small = picture.resize((32, 32), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        _save(small, home / split / name / f"{path.stem}.png")


def write_beetles(home: Path) -> None:
    """All 70 species of beetles, which differ in details: 12 images each to train, 4 to validate, 20 to test."""
    individuals = {"train": range(12), "val": range(500, 504), "test": range(1_000_000, 1_000_020)}
    for name, species in (beetles.SPECIES["target"] | beetles.SPECIES["source"]).items():
        for split, numbers in individuals.items():
            for number in numbers:
                _save(beetles.draw(species, number), home / split / name / f"{number}.png")


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _drawn(home: Path, write: Callable[[Path], None]) -> list[Row]:
    """The images of home/<split>/<class>, which are written on first use."""
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as temporary:  # renamed: it is complete or missing
            whole = Path(temporary, "whole")
            write(whole)
            if not whole.is_dir():
                return []
            whole.rename(home)
    return [(path, name, s.name) for s in sorted(home.iterdir()) for name, ps in classes_of(s).items() for path in ps]


def _starter(home: Path) -> list[Row]:
    if not home.is_dir():
        beetles.write(home, "target")
    return test_on_val(home)


# Name: the user's folder that it needs, if any, and its rows, from that folder and one for images of its own.
SETS: dict[str, tuple[str | None, Callable[[Path | None, Path], list[Row]]]] = {
    "ants_bees": ("hymenoptera", lambda given, home: test_on_val(given)),
    "caltech80": ("caltech", lambda given, home: random_fifth(given)),
    "caltech15": ("caltech", lambda given, home: few_shot(given)),
    "tiny10": ("caltech", lambda given, home: _drawn(home, lambda whole: write_tiny(given, whole))),
    "beetles70": (None, lambda given, home: _drawn(home, write_beetles)),
    "starter": (None, lambda given, home: _starter(home)),
}


def make(name: str, given: Path | None, folder: Path) -> Path:
    """Write folder/<name>.csv and return its path; `given` is the user's folder of images, where the set needs one.

    Raises `UserError` where the file is there already with other images: results from it would be mixed with new ones.
    """
    folder = folder.resolve()
    if given is not None and not given.is_dir():
        raise UserError(f"{given} is no folder.")
    rows = SETS[name][1](given.resolve() if given else None, folder / name)
    if {split for *_, split in rows} != {"train", "val", "test"}:
        raise UserError(f"{given} does not hold the images of {name}: it needs class folders with enough of them.")
    own = folder / name
    lines = [(str(path.relative_to(folder) if own in path.parents else path), *rest) for path, *rest in rows]
    file = folder / f"{name}.csv"
    if file.exists():
        with file.open(newline="", encoding="utf-8") as old:
            known = [(Path(path).name, *rest) for path, *rest in csv.reader(old)][1:]
        if known != [(Path(path).name, *rest) for path, *rest in lines]:
            raise UserError(f"{file} lists other images than {given or own} holds: use another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as new:
        csv.writer(new).writerows([("path", "label", "split"), *lines])
    return file


def check(name: str, file: Path) -> None:
    """Raises `UserError` where a user's file cannot be a set of this name."""
    if name in SETS:
        raise UserError(f"{file} has the name of another set: rename it.")
    if not file.is_file():
        raise UserError(f"there is no file {file}.")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        splits, columns = {row.get("split") for row in rows}, set(rows.fieldnames or ())
    if not columns >= {"path", "label"} or splits != {"train", "val", "test"}:
        raise UserError(f"{file} needs the columns path, label and split, with train, val and test in the last.")
