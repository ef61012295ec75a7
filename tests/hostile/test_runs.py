"""Runs of a stranger: config.json, summary.json, metrics.jsonl."""

from __future__ import annotations

import pytest
from hostile.harness import Place, check, params
from hostile.json_files import changed, json_cases


def predict(place: Place) -> list[object]:
    return ["predict", "run", place.photos]


COMMANDS = {
    "predict": predict,
    "evaluate": lambda place: ["evaluate", "run"],
    "plot": lambda place: ["plot", "run"],
    "compare": lambda place: ["compare", "run", place.run],
    "report": lambda place: ["report", "run", "--output", "r.html"],
    "check": lambda place: ["check", "run"],
}
CASES = []
for name, command in COMMANDS.items():
    cases = json_cases(f"{name}: config.json", lambda run: run / "config.json", command, "config.json")
    CASES += [case for case in cases if case.name != "compare: config.json: infinite"]  # an object, with what it shows
for name in ("plot", "compare", "report"):
    CASES += json_cases(f"{name}: summary.json", lambda run: run / "summary.json", COMMANDS[name], "summary.json")
    CASES += json_cases(f"{name}: metrics.jsonl", lambda run: run / "metrics.jsonl", COMMANDS[name], "")
WRONG = {"text": "x", "a list": [], "an object": {}, "null": None, "missing": ..., "true": True, "NaN": float("nan")}
for name in ("plot", "compare", "report"):
    for key in ("best_epoch", "best_val_accuracy", "best_val_loss", "total_seconds", "epochs_run", "test_accuracy"):
        changes = {f"{key} {kind}": {key: value} for kind, value in WRONG.items()}
        if key == "test_accuracy":
            del changes["test_accuracy null"], changes["test_accuracy missing"]
        CASES += changed(f"{name}: summary.json", "summary.json", COMMANDS[name], changes)
    for key in ("epoch", "lr", "train_loss", "val_accuracy", "images_per_second"):
        changes = {f"{key} {kind}": {key: value} for kind, value in WRONG.items()}
        if key == "lr":
            del changes["lr an object"]
            changes["lr of text"] = {"lr": {"head": "x"}}
        CASES += changed(f"{name}: metrics.jsonl", "metrics.jsonl", COMMANDS[name], changes)
CONFIG = {
    "recipe a list": {"recipe": ["finetune"]},
    "recipe an object": {"recipe": {}},
    "recipe unknown": {"recipe": "../x"},
    "data a list": {"data": [1]},
    "batch_size text": {"batch_size": "4"},
    "batch_size 10^12": {"batch_size": 10**12},
    "lr NaN": {"lr": float("nan")},
    "hidden an object": {"hidden": {}},
    "optimizer a list": {"optimizer": ["sgd"]},
    "optimizer an object": {"optimizer": {}},
    "train_depths a number": {"train_depths": 3},
    "classes a number": {"classes": 3},
}
for name in ("predict", "evaluate", "plot", "report"):
    which = {kind: value for kind, value in CONFIG.items() if name == "report" or kind != "classes a number"}
    CASES += changed(f"{name}: config.json", "config.json", COMMANDS[name], which)


@pytest.mark.parametrize("case", params(CASES, 120))
def test_a_run_of_a_stranger_is_refused(case, place):
    check(case, place)
