"""Where a command runs: names that are no Unicode, terminals of other encodings, unusable homes and caches."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.harness import Case, Place, check, params, train

ODD = os.fsdecode(b"caf\xe9")  # no UTF-8
WIDE = "Gänseblümchen 雏菊 🌼"


# ---- names that are no Unicode ---------------------------------------------------------------------------------------
def renamed(place: Place, count: int = 0) -> str:
    """The photos in a folder, with a class and files, under such a name; `count` more files."""
    top = place.folder / ODD
    shutil.copytree(place.photos, top)
    for split in ("train", "val"):
        (top / split / "red").rename(top / split / ODD)
        for path in sorted((top / split / ODD).iterdir()):
            path.rename(path.with_name(f"{ODD}{path.name}"))
    source = next((top / "train" / ODD).iterdir())
    for k in range(count):
        shutil.copyfile(source, top / "train" / ODD / f"{ODD}{k}.jpg")
    return ODD


def of_renamed(make: Callable[[Place], list[object]], count: int = 0) -> Callable[[Place], list[object]]:
    def prepared(place: Place) -> list[object]:
        renamed(place, count)
        return make(place)

    return prepared


def bad_file(place: Place) -> list[object]:
    renamed(place)
    (place.folder / ODD / "train" / ODD / f"{ODD}.jpg").write_bytes(b"no image")
    return train("--data", ODD)


def in_csv(place: Place) -> list[object]:
    """A CSV in UTF-8 cannot name such a file: it is not found."""
    renamed(place)
    (place.folder / "set.csv").write_text("path,label\ncafé.jpg,a\n")
    return train("--data", "set.csv")


ESCAPED = "caf\\udce9"
NAMES = [
    Case("name: training", of_renamed(lambda place: train("--data", ODD)), (ESCAPED,), 0),
    Case("name: training on 150 files", of_renamed(lambda place: train("--data", ODD, "--plan"), 150), (ESCAPED,), 0),
    Case("name: output", lambda place: train("--data", place.photos, "--output", ODD), (ESCAPED, "UTF-8")),
    Case("name: the plan as JSON", of_renamed(lambda place: train("--data", ODD, "--plan", "--json")), (ESCAPED,), 0),
    Case("name: an image that does not decode", bad_file, (f"{ESCAPED}.jpg",)),
    Case("name: a row of a CSV", in_csv, ("caf", "point nowhere")),
    Case("name: no such data", lambda place: train("--data", ODD), (ESCAPED, "does not exist")),
    Case("name: no such weights", lambda place: train("--data", place.photos, "--weights", ODD), (ESCAPED,)),
    Case("name: predict", of_renamed(lambda place: ["predict", place.run, ODD]), (ESCAPED,), 0),
    Case("name: predict --csv", of_renamed(lambda place: ["predict", place.run, ODD, "--csv"]), (ESCAPED,), 0),
    Case("name: predict --json", of_renamed(lambda place: ["predict", place.run, ODD, "--json"]), (ESCAPED,), 0),
    Case(
        "name: predict --grid", of_renamed(lambda place: ["predict", place.run, ODD, "--grid", "g.png"]), (ESCAPED,), 0
    ),
    Case(
        "name: predict --explain",
        of_renamed(lambda place: ["predict", place.run, ODD, "--explain", "e"]),
        (ESCAPED,),
        0,
    ),
    Case("name: embed", of_renamed(lambda place: ["embed", place.run, ODD, "--output", f"{ODD}.npz"]), (ESCAPED,), 0),
    Case(
        "name: a run",
        lambda place: (shutil.copytree(place.run, place.folder / ODD), ["evaluate", ODD, "--json"])[1],
        (ESCAPED, "UTF-8"),
    ),
    Case("name: evaluate", of_renamed(lambda place: ["evaluate", place.run, "--data", f"{ODD}"]), (ESCAPED,)),
    Case(
        "name: export",
        lambda place: ["export", place.run, "--format", "state-dict", "--output", f"{ODD}.pth"],
        (ESCAPED,),
        0,
    ),
    Case("name: report", lambda place: ["report", place.run, "--output", f"{ODD}.html"], (ESCAPED,), 0),
    Case(
        "name: compare",
        lambda place: (shutil.copytree(place.run, place.folder / ODD), ["compare", ODD, place.run])[1],
        (ESCAPED,),
        0,
    ),
    Case(
        "name: plot",
        lambda place: (shutil.copytree(place.run, place.folder / ODD), ["plot", ODD])[1],
        (ESCAPED, "UTF-8"),
    ),
    Case("name: push", lambda place: ["push", place.run, "me/x", "--dry-run", ODD], (ESCAPED,), 0),
]


# ---- terminals -------------------------------------------------------------------------------------------------------
def wide(place: Place) -> list[object]:
    """Classes whose names most encodings lack."""
    shutil.copytree(place.photos, place.folder / "photos")
    for split in ("train", "val"):
        (place.folder / "photos" / split / "red").rename(place.folder / "photos" / split / WIDE)
    return train("--data", "photos")


def wide_run(*words: object) -> Callable[[Place], list[object]]:
    def make(place: Place) -> list[object]:
        shutil.copytree(place.run, place.folder / "run")
        path = place.folder / "run" / "model" / "model.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps(known | {"classes": [WIDE, "β", "naïve"]}))
        return [place.photos if word is ... else word for word in words]

    return make


COMMANDS = {
    "training": (wide, "epoch 2/2"),
    "--plan": (lambda place: train("--data", place.photos, "--plan"), "depth"),
    "--help": (lambda place: ["train", "--help"], "--batch-size"),
    "commands": (lambda place: ["--help"], "predict"),
    "predict --help": (lambda place: ["predict", "--help"], "--topk"),
    "predict": (wide_run("predict", "run", ...), ".jpg"),
    "predict --json": (wide_run("predict", "run", ..., "--json"), '"probability"'),
    "predict --csv": (wide_run("predict", "run", ..., "--csv"), ".jpg"),
    "evaluate": (lambda place: ["evaluate", place.run], "accuracy"),
    "export": (wide_run("export", "run", "--format", "state-dict", "--output", "m.pth"), "m.pth"),
    "report": (lambda place: ["report", place.run, "--output", "r.html"], "r.html"),
    "compare": (lambda place: ["compare", place.run, place.run], "val accuracy"),
    "cache": (lambda place: ["cache"], "files"),
}
ENCODINGS = ("ascii", "latin-1", "cp1252")
TERMINALS = [
    Case(f"{encoding}: {name}", make, (word,), 0, {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"})
    for encoding in ENCODINGS
    for name, (make, word) in COMMANDS.items()
]
TERMINALS += [
    Case("ascii: a mistake", lambda place: train("--data", WIDE), ("\\u96cf",), 2, {"PYTHONIOENCODING": "ascii"})
]


# ---- homes and caches ------------------------------------------------------------------------------------------------
def closed_home(place: Place) -> list[object]:
    home = place.folder.parent / "home"
    home.mkdir()
    home.chmod(0)
    return _training(place)


def _training(place: Place) -> list[object]:
    words = train("--data", place.photos, "--recipe", "feature_extractor", "--solver", "sgd")
    at = words.index("--cache-dir")
    return [*words[:at], *words[at + 2 :]]


def closed_cache(place: Place) -> list[object]:
    (place.folder.parent / "caches").mkdir()
    (place.folder.parent / "caches").chmod(0)
    return _training(place)


def file_as_cache(place: Place) -> list[object]:
    (place.folder.parent / "caches").write_text("")
    return _training(place)


def odd_cache(place: Place) -> Path:
    folder = place.folder.parent / "odd"
    folder.mkdir()
    (folder / "folder.safetensors").mkdir()
    (folder / "folder.safetensors" / "inner").touch()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "nowhere.safetensors").symlink_to("gone")
    (folder / "circle.safetensors").symlink_to("circle.safetensors")
    (folder / "device.safetensors").symlink_to("/dev/zero")
    (folder / "text.safetensors").write_text("text")
    (folder / "empty.safetensors").touch()
    (folder / "closed.safetensors").write_bytes(bytes(100))
    (folder / "closed.safetensors").chmod(0)
    (folder / os.fsdecode(b"\xff.safetensors")).write_bytes(bytes(100))
    return folder


def entries_as_folders(place: Place) -> list[object]:
    """The cache of a first run, each of whose entries became a folder."""
    from hostile.harness import end_of

    cache = place.folder.parent / "full"
    words = train("--data", place.photos, "--recipe", "feature_extractor", "--cache-dir", cache, "--output", "first")
    assert end_of(words, place.folder, seconds=60).code == 0
    names = [path.name for path in cache.iterdir()]
    assert len(names) >= 1
    for k, name in enumerate(names):
        (cache / name).unlink()
        (cache / name).mkdir() if k % 2 == 0 else os.mkfifo(cache / name)
    return train("--data", place.photos, "--recipe", "feature_extractor", "--cache-dir", cache)


HOMES = [
    Case("a home that may not be entered", closed_home, ("epoch 2/2",), 0, {"XDG_CACHE_HOME": None}),
    Case("no home", _training, ("epoch 2/2",), 0, {"XDG_CACHE_HOME": None, "HOME": "/nonexistent/home"}),
    Case("a cache that may not be entered", closed_cache, ("epoch 2/2", "nothing is cached"), 0),
    Case("a cache that is a file", file_as_cache, ("epoch 2/2", "nothing is cached"), 0),
    Case("a cache of odd things: list", lambda place: ["cache", "--cache-dir", odd_cache(place)], ("files",), 0),
    Case(
        "a cache of odd things: clear",
        lambda place: ["cache", "clear", "--cache-dir", odd_cache(place)],
        ("Deleted",),
        0,
    ),
    Case(
        "a cache of odd things: training",
        lambda place: train("--data", place.photos, "--recipe", "feature_extractor", "--cache-dir", odd_cache(place)),
        ("epoch 2/2",),
        0,
    ),
    Case("a cache whose entries are folders", entries_as_folders, ("epoch 2/2",), 0),
]

CASES = [*NAMES, *TERMINALS, *HOMES]


@pytest.mark.parametrize("case", params(CASES, 25))
def test_a_command_goes_on_or_says_why_not(case, place):
    check(case, place)
