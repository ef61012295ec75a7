"""Checkpoints whose checksums fit and whose content does not, and checkpoints that are none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.harness import Case, Place, check, params, train
from hostile.json_files import NO_JSON
from hostile.tensor_files import first, tensors

from finetune.runtime import files


def resume(place: Place) -> list[str]:
    words = train("--recipe", "finetune", "--data", place.photos, "--output", "run", "--epochs", "3", "--resume")
    return words


def checkpoint_case(name: str, change: Callable[[Path], object], *says: str, sums: bool = True) -> Case:
    """Both checkpoints changed; with `sums`, their checksums then fit again."""

    def make(place: Place) -> list[str]:
        shutil.copytree(place.stopped(), place.folder / "run")
        for folder in sorted((place.folder / "run" / "checkpoints").iterdir()):
            change(folder)
            if sums:
                (folder / files.SUMS).unlink()
                files.write_sums(folder, {})
        return resume(place)

    return Case(f"checkpoint {name}", make, says or ("checkpoints",))


def in_state(*path: str, to: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        saved = json.loads((folder / "state.json").read_text())
        inner = saved
        for key in path[:-1]:
            inner = inner[key]
        if to is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = to
        (folder / "state.json").write_text(json.dumps(saved))

    return change


CASES = [
    *(
        checkpoint_case(
            f"whose state.json is {kind}", lambda folder, content=content: (folder / "state.json").write_bytes(content)
        )
        for kind, content in NO_JSON.items()
    ),
    *(
        checkpoint_case(f"without {'.'.join(path)}", in_state(*path, to=...))
        for path in (
            ("format",),
            ("state",),
            ("settings",),
            ("preprocess",),
            ("sums",),
            ("rates",),
            ("state", "epoch"),
            ("state", "step"),
            ("state", "history"),
            ("state", "run_clock"),
            ("preprocess", "mean"),
            ("settings", "versions"),
        )
    ),
    *(
        checkpoint_case(f"with {'.'.join(path)} {kind}", in_state(*path, to=value))
        for path in (
            ("format",),
            ("state",),
            ("settings",),
            ("preprocess",),
            ("sums",),
            ("rates",),
            ("state", "epoch"),
            ("state", "step"),
            ("state", "history"),
            ("state", "best"),
            ("state", "run_clock"),
            ("state", "epochs"),
            ("state", "accumulate"),
            ("preprocess", "crop"),
            ("settings", "versions"),
        )
        for kind, value in {
            "text": "x",
            "a list": [1],
            "an object": {"a": 1},
            "negative": -5,
            "10^30": 10**30,
            "NaN": float("nan"),
        }.items()
        if (path[-1], kind) != ("versions", "an object")
    ),
    checkpoint_case("with more in its state", in_state("state", "more", to=1)),
    checkpoint_case("of a newer format", in_state("format", to=99), "newer"),
    checkpoint_case("of an older format", in_state("format", to=1), "older"),
    checkpoint_case(
        "whose model lacks a tensor", tensors("model.safetensors", lambda state: dict(list(state.items())[1:]))
    ),
    checkpoint_case(
        "whose model has one more", tensors("model.safetensors", lambda state: state | {"more": torch.zeros(2)})
    ),
    checkpoint_case(
        "whose model has another shape",
        tensors("model.safetensors", lambda state: first(state, lambda x: torch.zeros(3))),
    ),
    checkpoint_case(
        "whose model is of integers",
        tensors("model.safetensors", lambda state: first(state, lambda x: x.to(torch.int32))),
    ),
    checkpoint_case(
        "whose optimizer names another", tensors("optimizer.safetensors", lambda state: {"no/momentum": torch.zeros(2)})
    ),
    checkpoint_case(
        "whose optimizer has another shape",
        tensors("optimizer.safetensors", lambda state: first(state, lambda x: torch.zeros(3))),
    ),
    checkpoint_case(
        "whose best lacks a tensor", tensors("best.safetensors", lambda state: dict(list(state.items())[1:]))
    ),
    checkpoint_case(
        "whose best has another shape",
        tensors("best.safetensors", lambda state: first(state, lambda x: torch.zeros(3))),
    ),
    checkpoint_case("without a model", lambda folder: (folder / "model.safetensors").unlink()),
    checkpoint_case("without an optimizer", lambda folder: (folder / "optimizer.safetensors").unlink()),
    checkpoint_case("without frozen tensors", lambda folder: (folder / "frozen.safetensors").unlink()),
    checkpoint_case("whose model is text", lambda folder: (folder / "model.safetensors").write_text("text")),
    checkpoint_case(
        "whose checksums are a pipe",
        lambda folder: ((folder / files.SUMS).unlink(), os.mkfifo(folder / files.SUMS)),
        sums=False,
    ),
    checkpoint_case(
        "whose checksums are binary", lambda folder: (folder / files.SUMS).write_bytes(bytes(range(256))), sums=False
    ),
    checkpoint_case(
        "whose checksums are large", lambda folder: (folder / files.SUMS).write_bytes(b"0" * 80_000_000), sums=False
    ),
    checkpoint_case(
        "whose checksums name another folder",
        lambda folder: (folder / files.SUMS).write_text("0" * 64 + "  ../../config.json\n"),
        sums=False,
    ),
    checkpoint_case(
        "with a pipe",
        lambda folder: ((folder / "model.safetensors").unlink(), os.mkfifo(folder / "model.safetensors")),
        sums=False,
    ),
    checkpoint_case(
        "with a folder",
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        sums=False,
    ),
    checkpoint_case("that may not be read", lambda folder: (folder / "model.safetensors").chmod(0), sums=False),
    checkpoint_case("that may not be entered", lambda folder: folder.chmod(0), sums=False),
    checkpoint_case("that is a file", lambda folder: (shutil.rmtree(folder), folder.write_text("text")), sums=False),
    checkpoint_case("that is a pipe", lambda folder: (shutil.rmtree(folder), os.mkfifo(folder)), sums=False),
    checkpoint_case(
        "that links to nowhere", lambda folder: (shutil.rmtree(folder), folder.symlink_to("gone")), sums=False
    ),
    checkpoint_case(
        "that links to itself", lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)), sums=False
    ),
    checkpoint_case(
        "that is a whole one behind a link",
        lambda folder: (
            folder.rename(folder.parent.parent / folder.name),
            folder.symlink_to(folder.parent.parent / folder.name),
        ),
        sums=False,
    ),
]


def _folder(change: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        shutil.copytree(place.stopped(), place.folder / "run")
        change(place.folder / "run")
        return resume(place)

    return make


CASES += [
    Case(
        "the checkpoints' folder is a file",
        _folder(lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text(""))),
        ("checkpoints",),
    ),
    Case(
        "the checkpoints' folder may not be entered",
        _folder(lambda run: (run / "checkpoints").chmod(0)),
        ("checkpoints",),
    ),
    Case("a run's folder may not be entered", _folder(lambda run: run.chmod(0)), ("run",)),
    *(
        Case(
            f"--resume: config.json {kind}",
            _folder(
                lambda run, content=content: (
                    shutil.rmtree(run / "checkpoints"),
                    (run / "config.json").write_bytes(content),
                )
            ),
            ("config.json",),
        )
        for kind, content in NO_JSON.items()
        if kind != "infinite"
    ),
]


@pytest.mark.parametrize("case", params(CASES, 90))
def test_a_checkpoint_that_is_none_is_refused(case, place):
    check(case, place)
