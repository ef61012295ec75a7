"""The comparison of an int8 file with the model: accuracies, equal predictions, what is refused."""

from types import SimpleNamespace

import pytest
import torch

from finetune.errors import UserError
from finetune.inference.exports import comparison

# Four images of two classes. The model is right about three; the file changes one prediction of those, the last.
LABELS = torch.tensor([0, 1, 1, 1])
EXPECTED = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
FOUND = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [1.0, 0.0]])


class Given:
    """Examples in two batches."""

    kind = "validation images"

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return 4

    def batches(self, size):
        for part in (slice(0, 3), slice(3, 4)):
            yield torch.arange(4)[part], None if self.labels is None else self.labels[part]


def rows(logits):
    return lambda positions: logits[positions]


def test_accuracies_and_equal_predictions_are_counted():
    found = comparison.agreement(rows(EXPECTED), rows(FOUND), Given(LABELS))
    assert (found.images, found.accuracy, found.model_accuracy, found.equal) == (4, 0.5, 0.75, 0.75)
    assert found.difference == pytest.approx((EXPECTED.softmax(1) - FOUND.softmax(1)).abs().max().item())
    assert found.lost == 25


def test_without_labels_a_changed_prediction_counts_as_lost():
    found = comparison.agreement(rows(EXPECTED), rows(FOUND), Given(None))
    assert (found.accuracy, found.model_accuracy, found.lost) == (None, None, 25)


@pytest.mark.parametrize(("labels", "words"), [(LABELS, "points of accuracy"), (None, "points of predictions changed")])
def test_a_loss_beyond_the_tolerance_is_refused_with_what_to_try(labels, words):
    opened = SimpleNamespace(model=rows(EXPECTED), net=SimpleNamespace(model="resnet18"))
    with pytest.raises(
        UserError, match=rf"25\.0 {words} on 4 validation images.*--calibration-images.*--half"
    ) as error:
        comparison.same_accuracy(opened, Given(labels), 24.9)(rows(FOUND))
    assert "--tolerance 25.1" in str(error.value)
    assert comparison.same_accuracy(opened, Given(labels), 25.0)(rows(FOUND)).lost == 25
