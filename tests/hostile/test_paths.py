"""Paths that cannot be used, in every option that is a path."""

import os
from importlib.util import find_spec

import pytest
from hostile.harness import Case, Place, check, params, train

LONG = "x" * 300


def _no_home(place: Place) -> str:
    return "~nobody-of-this-name/x"


def _long_name(place: Place) -> str:
    return LONG


def _long_path(place: Place) -> str:
    return "/".join(["y" * 200] * 25)


def _dangling(place: Place) -> str:
    (place.folder / "dangling").symlink_to("nowhere")
    return "dangling"


def _circle(place: Place) -> str:
    (place.folder / "circle").symlink_to("circle")
    return "circle"


def _forbidden(place: Place) -> str:
    (place.folder / "forbidden" / "inner").mkdir(parents=True)
    (place.folder / "forbidden").chmod(0)
    return "forbidden/inner"


def _below_a_file(place: Place) -> str:
    (place.folder / "file").write_text("text")
    return "file/below"


def _pipe(place: Place) -> str:
    os.mkfifo(place.folder / "pipe")
    return "pipe"


PATHS = {
    "without a home": (_no_home, "~nobody-of-this-name"),
    "with a long name": (_long_name, "xxx"),
    "with a long path": (_long_path, "yyy"),
    "that links to nowhere": (_dangling, "dangling"),
    "that links to itself": (_circle, "circle"),
    "in a forbidden folder": (_forbidden, "forbidden"),
    "below a file": (_below_a_file, "file"),
    "that is a pipe": (_pipe, "pipe"),
}
READ = {  # options that name what is read
    "--data": lambda place, path: train("--data", path),
    "--weights": lambda place, path: train("--data", place.photos, "--weights", path),
    "--resume": lambda place, path: train("--data", place.photos, "--output", path, "--resume"),
    "predict": lambda place, path: ["predict", path, place.photos],
    "predict IMAGE": lambda place, path: ["predict", place.run, path],
    "predict --weights": lambda place, path: ["predict", "resnet18", place.photos, "--weights", path],
    "embed": lambda place, path: ["embed", path, place.photos, "--output", "x.npz"],
    "evaluate": lambda place, path: ["evaluate", path],
    "evaluate --data": lambda place, path: ["evaluate", place.run, "--data", path],
    "compare": lambda place, path: ["compare", place.run, path],
    "report": lambda place, path: ["report", path],
    "plot": lambda place, path: ["plot", path],
    "export": lambda place, path: ["export", path, "--format", "state-dict"],
    "export --images": lambda place, path: [
        "export",
        place.run,
        "--format",
        "state-dict",
        "--output",
        "a.pth",
        "--images",
        path,
    ],
    "bench": lambda place, path: ["bench", path],
    "push": lambda place, path: ["push", path, "me/model", "--dry-run", "x"],
    "demo": lambda place, path: ["demo", path, "--port", "0"],
    "cache --cache-dir": lambda place, path: ["cache", "--cache-dir", path],
    "check": lambda place, path: ["check", path],
    "check --exclude": lambda place, path: ["check", place.photos, "--exclude", path],
    "--exclude": lambda place, path: train("--data", place.photos, "--exclude", path),
}
WRITTEN = {  # options that name what is written
    "--output": lambda place, path: train("--data", place.photos, "--output", path),
    "predict --grid": lambda place, path: ["predict", place.run, place.photos, "--grid", path],
    "predict --explain": lambda place, path: ["predict", place.run, place.photos, "--explain", path],
    "evaluate --output": lambda place, path: ["evaluate", place.run, "--output", path],
    "compare --picture": lambda place, path: ["compare", place.run, place.run, "--picture", path],
    "report --output": lambda place, path: ["report", place.run, "--output", path],
    "export --output": lambda place, path: ["export", place.run, "--format", "state-dict", "--output", path],
    "check --html": lambda place, path: ["check", place.photos, "--html", path],
    "check --fix-list": lambda place, path: ["check", place.photos, "--fix-list", path],
    "push --dry-run": lambda place, path: ["push", place.run, "me/model", "--dry-run", path],
    "--data-root": lambda place, path: train("--data", "cifar10", "--data-root", path),
    "--cache-dir": lambda place, path: train("--data", place.photos, "--cache-dir", path),
}


def _case(option: str, command, kind: str) -> Case:
    make, word = PATHS[kind]
    return Case(f"{option} {kind}", lambda place: command(place, make(place)), (word,))


CASES = [
    _case(option, command, kind)
    for table in (READ, WRITTEN)
    for option, command in table.items()
    for kind in PATHS
    if option != "demo" or find_spec("fastapi")
]


@pytest.mark.parametrize("case", params(CASES, 60))
def test_a_path_that_cannot_be_used_is_named(case, place):
    check(case, place)
