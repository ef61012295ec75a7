"""Model folders of a stranger: model.json and the weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.harness import Case, Place, check, params
from hostile.json_files import changed, json_cases
from hostile.tensor_files import first, tensors


def predict(place: Place) -> list[object]:
    return ["predict", "run", place.photos]


PREPROCESS = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3, "fit": "crop"}
CASES = json_cases("model.json", lambda run: run / "model" / "model.json", predict, "model.json")
CASES += changed(
    "model.json",
    "model/model.json",
    predict,
    {
        "a list as model": {"model": ["resnet18"]},
        "an object as model": {"model": {"name": "resnet18"}},
        "a path as model": {"model": "../../etc/passwd"},
        "crop 1": {"preprocess": PREPROCESS | {"crop": 1}},
        "crop 0": {"preprocess": PREPROCESS | {"crop": 0}},
        "crop true": {"preprocess": PREPROCESS | {"crop": True}},
        "crop 10^9": {"preprocess": PREPROCESS | {"crop": 10**9}},
        "mean 10^300": {"preprocess": PREPROCESS | {"mean": [10**300] * 3}},
        "mean 1e300": {"preprocess": PREPROCESS | {"mean": [1e300] * 3}},
        "mean 10^400": {"preprocess": PREPROCESS | {"mean": [10**400] * 3}},
        "std 1e-320": {"preprocess": PREPROCESS | {"std": [1e-320] * 3}},
        "mean true": {"preprocess": PREPROCESS | {"mean": [True] * 3}},
        "mean text": {"preprocess": PREPROCESS | {"mean": "abc"}},
        "mean a number": {"preprocess": PREPROCESS | {"mean": 3}},
        "interpolation a list": {"preprocess": PREPROCESS | {"interpolation": ["bilinear"]}},
        "interpolation an object": {"preprocess": PREPROCESS | {"interpolation": {}}},
        "fit an object": {"preprocess": PREPROCESS | {"fit": {}}},
        "another key in preprocess": {"preprocess": PREPROCESS | {"eval": "os"}},
        "preprocess a list": {"preprocess": [1]},
        "head a list": {"head": ["linear"]},
        "head an object": {"head": {}},
        "hidden an object": {"head": "mlp", "hidden": {"8": 8}},
        "hidden nested": {"head": "mlp", "hidden": [[8]]},
        "hidden without end": {"head": "mlp", "hidden": [24] * 500_000},
        "hidden of 10^12": {"head": "mlp", "hidden": [10**12]},
        "channels 10^9": {"in_channels": 10**9},
        "pool 10^9": {"pool_size": 10**9},
        "pool text": {"pool_size": "7"},
        "classes an object": {"classes": {"a": 1, "b": 2}},
        "classes nested": {"classes": [["a"], ["b"]]},
        "classes empty": {"classes": []},
        "classes of numbers": {"classes": [1, 2, 3]},
        "a million classes": {"classes": list(map(str, range(1_000_000)))},
        "another number of classes": {"classes": ["a", "b", "c", "d"]},
        "format text": {"format": "2"},
        "format true": {"format": True},
        "format null": {"format": None},
        "format negative": {"format": -1},
        "format newer": {"format": 99},
        "format a float": {"format": 2.0},
        "score a list": {"score": [1]},
        "score of objects": {"score": {"epoch": {}}},
        "score of text": {"score": {"val_accuracy": "high"}},
        "weights a number": {"weights": 3},
        "dropout 10^9": {"dropout": 10**9},
        "image_size -5": {"image_size": -5},
        "image_size 10^9": {"image_size": 10**9},
    },
)


def model_case(name: str, change: Callable[[Path], object], *says: str) -> Case:
    def make(place: Place) -> list[object]:
        shutil.copytree(place.run, place.folder / "run")
        change(place.folder / "run" / "model")
        return predict(place)

    return Case(f"model folder {name}", make, says or ("model",))


def model_weights(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    return tensors("model.safetensors", change)


CASES += [
    model_case("without weights", lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    model_case(
        "whose weights are a link out",
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").symlink_to("/etc/passwd"),
        ),
        "link",
    ),
    model_case(
        "whose weights link to themselves",
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").symlink_to("model.safetensors"),
        ),
        "model.safetensors",
    ),
    model_case(
        "whose weights are a pipe",
        lambda folder: ((folder / "model.safetensors").unlink(), os.mkfifo(folder / "model.safetensors")),
        "model.safetensors",
    ),
    model_case(
        "whose weights are a folder",
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "model.safetensors",
    ),
    model_case(
        "whose weights may not be read", lambda folder: (folder / "model.safetensors").chmod(0), "model.safetensors"
    ),
    model_case(
        "whose weights are cut", lambda folder: os.truncate(folder / "model.safetensors", 10_000), "model.safetensors"
    ),
    model_case(
        "whose weights are text", lambda folder: (folder / "model.safetensors").write_text("text"), "model.safetensors"
    ),
    model_case(
        "whose metadata is a link out",
        lambda folder: ((folder / "model.json").unlink(), (folder / "model.json").symlink_to("/etc/passwd")),
        "link",
    ),
    model_case("whose metadata may not be read", lambda folder: (folder / "model.json").chmod(0), "model.json"),
    model_case("that may not be entered", lambda folder: folder.chmod(0), "model"),
    model_case(
        "of integers",
        model_weights(lambda state: {key: value.to(torch.int32) for key, value in state.items()}),
        "model.safetensors",
    ),
    model_case(
        "of booleans",
        model_weights(lambda state: {key: value > 0 for key, value in state.items()}),
        "model.safetensors",
    ),
    model_case(
        "of complex numbers",
        model_weights(
            lambda state: {key: value.to(torch.complex64) if value.ndim else value for key, value in state.items()}
        ),
        "model.safetensors",
    ),
    model_case(
        "of NaN",
        model_weights(lambda state: {key: value * float("nan") for key, value in state.items()}),
        "model.safetensors",
    ),
    model_case("that lacks a tensor", model_weights(lambda state: dict(list(state.items())[1:])), "model.safetensors"),
    model_case(
        "with one tensor more", model_weights(lambda state: state | {"more": torch.zeros(2)}), "model.safetensors"
    ),
    model_case(
        "with another shape", model_weights(lambda state: first(state, lambda x: torch.zeros(3))), "model.safetensors"
    ),
]


@pytest.mark.parametrize("case", params(CASES, 40))
def test_a_model_folder_of_a_stranger_is_refused(case, place):
    check(case, place)
