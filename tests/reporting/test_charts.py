"""Charts are drawn for few classes and for many, also of a model without an error, and of class names with dollars."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from finetune.reporting import charts
from finetune.training.metrics import Predictions


def made_up(classes, images=400):
    """Predictions of which nine in ten are correct."""
    random = np.random.default_rng(0)
    labels = np.arange(images) % classes
    predicted = np.where(random.random(images) < 0.9, labels, random.integers(0, classes, images))
    return Predictions(labels, predicted, random.uniform(1 / classes, 1, images))


def history(epochs=4):
    records = []
    for epoch in range(1, epochs + 1):
        lr = {"head": 1e-3 / epoch, "stage 1": 0.0 if epoch < 3 else 1e-4, "stem": 0.0}
        metrics = {f"{split}_{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}
        records.append({"epoch": epoch, "lr": lr, **metrics})
    return records


SUMMARY = {"best_epoch": 3, "best_val_loss": 0.5, "best_val_accuracy": 0.5}


@pytest.mark.parametrize("classes", [2, 3, pytest.param(102, marks=pytest.mark.slow)])
def test_every_chart_is_drawn(tmp_path, classes):
    names = [f"a class called {k} " + "long " * (k % 9) for k in range(classes)]
    charts.of_predictions(tmp_path, made_up(classes), names, "Validation")
    charts.curves(tmp_path / "curves.png", history(), SUMMARY)
    charts.comparison(tmp_path / "comparison.png", {f"run {k}": history() for k in range(classes)})
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in pictures] == ["calibration", "comparison", "confusion", "curves", "per_class"]
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 5, f"{path.name} is blank"
        assert max(pixels.shape) < 6000, f"{path.name} is larger than any screen"


@pytest.mark.parametrize(
    ("more", "title"),
    [
        ({}, "accuracy; best epoch 3: val 0.5000"),
        ({"interpolation": 1.0}, "accuracy; best epoch 3: val 0.5000"),
        ({"interpolation": 0.75, "best_val_accuracy": 0.75}, "accuracy; 75% of the way to epoch 3: val 0.7500"),
    ],
)
def test_the_curves_mark_the_weights_that_are_the_result(tmp_path, monkeypatch, more, title):
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure))
    charts.curves(tmp_path / "curves.png", history(), SUMMARY | more)
    axes = next(axes for axes in drawn[0].axes if axes.get_title(loc="left").startswith("accuracy"))
    assert axes.get_title(loc="left") == title
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert star.get_ydata() == [(SUMMARY | more)["best_val_accuracy"]]


def test_predictions_without_an_error_of_one_class_only_are_drawn(tmp_path):
    zeros = np.zeros(3, np.int64)
    charts.of_predictions(tmp_path, Predictions(zeros, zeros, np.full(3, 0.9)), ["a", "b"], "Validation")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_class_names_with_dollars_are_drawn_as_they_are(tmp_path):
    charts.of_predictions(tmp_path, made_up(2), ["a$x^y$", "b$_{$"], "Validation")
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_chart_has_the_format_of_its_name(tmp_path, suffix):
    charts.comparison(tmp_path / f"curves{suffix}", {"run": history()})
    start = (tmp_path / f"curves{suffix}").read_bytes()[:5]
    assert start == {".png": b"\x89PNG\r", ".svg": b"<?xml", ".pdf": b"%PDF-"}[suffix]


def test_charts_import_no_torch():
    code = "import sys; from finetune.reporting import charts; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_unfreezing_is_read_off_the_rates():
    assert charts.unfreezings(history()) == {3: ["stage 1"]}, "the stem never starts; the head did at once"


def test_rates_that_are_equal_up_to_rounding_are_one_line_and_four_are_shown():
    depths = {"head": 1e-3, "stage 3": 1e-4, "stage 2": 1e-5, "stage 1": 1e-3 * 0.1**3, "stem": 1e-6}
    assert depths["stage 1"] != depths["stem"]
    found = charts.rates([{"epoch": epoch, "lr": depths} for epoch in (1, 2)])
    assert [label for label, _ in found] == ["head", "stage 3", "stage 2", "stage 1 to stem"]
