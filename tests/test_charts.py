"""Figures agree with torchmetrics and by hand; charts are drawn for few classes and for many."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from finetune import analysis, charts, figures
from finetune.errors import UserError
from finetune.evaluate import Scores


def scores_of(logits, labels):
    probabilities, guesses = logits.softmax(1).topk(min(5, logits.shape[1]))
    return Scores(torch.nn.functional.cross_entropy(logits, labels, reduction="none"), guesses, probabilities, labels)


def made_up(classes, images=400):
    torch.manual_seed(0)
    labels = torch.arange(images) % classes
    logits = torch.randn(images, classes) + 3 * torch.nn.functional.one_hot(labels, classes)
    return scores_of(logits, labels), logits


def history(epochs=4):
    lines = []
    for epoch in range(1, epochs + 1):
        lr = {"head": 1e-3 / epoch, "stage 1": 0.0 if epoch < 3 else 1e-4, "stem": 0.0}
        figures = {f"{split}_{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}
        lines.append({"epoch": epoch, "lr": lr, **figures})
    return lines


@pytest.mark.parametrize("classes", [2, 3, 102])
def test_every_chart_is_drawn(tmp_path, classes):
    names = [f"a class called {k} " + "long " * (k % 9) for k in range(classes)]
    charts.of_guesses(tmp_path, made_up(classes)[0].first(), names, "Validation")
    charts.curves(tmp_path / "curves.png", history(), 3)
    charts.together(tmp_path / "together.png", {f"run {k}": history() for k in range(classes)})
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in pictures] == ["calibration", "confusion", "curves", "per_class", "together"]
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 5, f"{path.name} is blank"
        assert max(pixels.shape) < 6000, f"{path.name} is larger than any screen"


def test_scores_without_a_mistake_of_one_class_only_are_drawn(tmp_path):
    labels = torch.zeros(3, dtype=torch.int64)
    guesses = scores_of(torch.tensor([[9.0, 0.0]] * 3), labels).first()
    charts.of_guesses(tmp_path, guesses, ["a", "b"], "Validation")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_unfreezing_is_read_off_the_rates():
    assert charts.unfreezings(history()) == {3: ["stage 1"]}, "the stem never starts; the head did at once"


def test_calibration_error_is_torchmetrics_and_the_bins_add_up():
    scores, logits = made_up(4)
    found = figures.calibration(scores.first())
    expected = multiclass_calibration_error(logits.softmax(1), scores.labels, 4, n_bins=10).item()
    assert found.error == pytest.approx(expected, abs=1e-6)
    assert sum(found.counts) == 400
    gaps = [n * abs(a - c) for n, a, c in zip(found.counts, found.accuracy, found.confidence, strict=True) if n]
    assert sum(gaps) / 400 == pytest.approx(found.error, abs=1e-6)


def test_a_probability_that_is_no_number_makes_the_calibration_error_none():
    scores, _ = made_up(4)
    scores.probabilities[7, 0] = float("nan")
    assert np.isnan(figures.calibration(scores.first()).error)


def test_the_confusion_matrix_is_torchmetrics():
    scores, _ = made_up(7)
    expected = multiclass_confusion_matrix(scores.guesses[:, 0], scores.labels, 7)
    assert figures.confusion_matrix(scores.first(), 7).tolist() == expected.tolist()


def test_per_class_figures_and_confusions_by_hand():
    guesses, labels = torch.tensor([0, 0, 1, 2, 0, 0]), torch.tensor([0, 1, 1, 1, 1, 0])
    scores = scores_of(torch.nn.functional.one_hot(guesses, 3) * 5.0, labels)
    rows = analysis.per_class(scores, ["a", "b", "c"])
    assert [(row.images, row.recall) for row in rows] == [(2, 1.0), (4, 0.25), (0, 0.0)]
    assert [row.precision for row in rows] == [0.5, 1.0, 0.0]
    assert rows[0].f1 == pytest.approx(2 / 3)
    assert figures.largest_confusions(figures.confusion_matrix(scores.first(), 3), 5) == [(1, 0, 2), (1, 2, 1)]
    errors = analysis.errors(scores, ["a", "b", "c"], [f"{k}.jpg" for k in range(6)])
    assert {error["image"] for error in errors} == {"1.jpg", "3.jpg", "4.jpg"}


@pytest.mark.parametrize(
    ("share", "count", "interval"), [(0.5, 10, (0.237, 0.763)), (1.0, 10, (0.722, 1.0)), (0.0, 1, (0.0, 0.793))]
)
def test_the_interval_is_wilsons(share, count, interval):
    assert figures.wilson(share, count) == pytest.approx(interval, abs=1e-3)


def test_scores_are_written_and_read_back_and_damage_is_told(tmp_path):
    scores, _ = made_up(3)
    analysis.save(tmp_path / "validation.safetensors", scores, 7)
    again, epoch = analysis.load(tmp_path / "validation.safetensors")
    assert epoch == 7
    assert all(torch.equal(getattr(again, name), getattr(scores, name)) for name in ("losses", "guesses", "labels"))
    (tmp_path / "validation.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="is damaged"):
        analysis.load(tmp_path / "validation.safetensors")
