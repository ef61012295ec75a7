"""Metrics agree with torchmetrics, and with what is computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)

from finetune.errors import UserError
from finetune.training import metrics
from finetune.training.evaluation import Scores
from finetune.training.metrics import Predictions


def made_up(classes: int, images: int = 400) -> tuple[Predictions, torch.Tensor]:
    """Predictions that are mostly correct, and their logits (images, classes)."""
    torch.manual_seed(0)
    labels = torch.arange(images) % classes
    logits = torch.randn(images, classes) + 3 * F.one_hot(labels, classes)
    confidence, predicted = logits.softmax(1).max(1)
    return Predictions(labels.numpy(), predicted.numpy(), confidence.double().numpy()), logits


def test_the_calibration_error_is_torchmetrics_and_the_bins_add_up():
    predictions, logits = made_up(4)
    found = metrics.calibration(predictions)
    labels = torch.from_numpy(predictions.labels)
    expected = multiclass_calibration_error(logits.softmax(1), labels, 4, n_bins=10).item()
    assert found.error == pytest.approx(expected, abs=1e-6)
    assert sum(found.counts) == 400
    gaps = [n * abs(a - c) for n, a, c in zip(found.counts, found.accuracy, found.confidence, strict=True) if n]
    assert sum(gaps) / 400 == pytest.approx(found.error, abs=1e-6)


def test_a_confidence_that_is_nan_makes_the_calibration_error_nan():
    predictions, _ = made_up(4)
    predictions.confidence[7] = float("nan")
    assert np.isnan(metrics.calibration(predictions).error)


def test_the_confusion_matrix_is_torchmetrics():
    predictions, _ = made_up(7)
    predicted, labels = torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)
    expected = multiclass_confusion_matrix(predicted, labels, 7)
    assert metrics.confusion_matrix(predictions, 7).tolist() == expected.tolist()


def test_metrics_over_classes_are_torchmetrics():
    predictions, logits = made_up(7)
    labels = torch.from_numpy(predictions.labels)
    kept = labels < 5  # two classes without images, which some are predicted to be
    labels, logits = labels[kept], logits[kept]
    matrix = metrics.confusion_matrix(Predictions(labels.numpy(), logits.argmax(1).numpy(), np.ones(len(labels))), 7)
    assert matrix[:, 5:].sum() > 0
    recalls = multiclass_recall(logits, labels, 7, average=None)[:5]
    assert metrics.balanced_accuracy(matrix) == pytest.approx(recalls.mean().item(), rel=1e-6)
    assert metrics.macro_f1(matrix) == pytest.approx(multiclass_f1_score(logits, labels, 7).item(), rel=1e-6)
    positives, scores = (labels == 0), logits.softmax(1)[:, 0]
    pairs = scores[positives][:, None] > scores[~positives]  # the area is the fraction of pairs in the right order
    two = torch.stack([logits[:, 0] - logits[:, 1:].logsumexp(1), torch.zeros(len(labels))], 1)
    assert metrics.auroc(two, 1 - positives.long()) == pytest.approx(pairs.double().mean().item(), abs=1e-6)


def test_metrics_per_class_and_confusions_by_hand():
    predictions = Predictions(np.array([0, 1, 1, 1, 1, 0]), np.array([0, 0, 1, 2, 0, 0]), np.full(6, 0.9))
    rows = metrics.per_class(predictions, ["a", "b", "c"])
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert [(row.images, row.recall) for row in rows] == [(2, 1.0), (4, 0.25), (0, 0.0)]
    assert [row.precision for row in rows] == [0.5, 1.0, 0.0]
    assert rows[0].f1 == pytest.approx(2 / 3)
    assert metrics.largest_confusions(metrics.confusion_matrix(predictions, 3), 5) == [(1, 0, 2), (1, 2, 1)]


def test_metrics_of_one_class_alone():
    zeros = np.zeros(3, np.int64)
    (row,) = metrics.per_class(Predictions(zeros, zeros, np.full(3, 0.9)), ["a"])
    assert (row.name, row.images, row.precision, row.recall, row.f1) == ("a", 3, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("proportion", "count", "interval"), [(0.5, 10, (0.237, 0.763)), (1.0, 10, (0.722, 1.0)), (0.0, 1, (0.0, 0.793))]
)
def test_the_interval_is_wilsons(proportion, count, interval):
    assert metrics.wilson(proportion, count) == pytest.approx(interval, abs=1e-3)


def test_predictions_are_read_from_a_file_of_scores(tmp_path):
    logits, labels = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])
    probabilities, predictions = logits.softmax(1).topk(2)
    losses, path = F.cross_entropy(logits, labels, reduction="none"), tmp_path / "scores.safetensors"
    scores = Scores(losses, predictions, probabilities, labels)
    scores.save(path, epoch=1)
    read, first = Predictions.load(path), scores.first()
    for name in ("labels", "predicted", "confidence"):
        assert np.array_equal(getattr(read, name), getattr(first, name)), name
    assert read.correct.tolist() == [True, False]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is damaged: .*Delete it"):
        Predictions.load(path)
