"""The loss per image: mixed labels, label smoothing, class weights, auxiliary heads."""

import pytest
import torch
import torch.nn.functional as F

from finetune.config.settings import Training
from finetune.errors import UserError
from finetune.training import loss

LABELS, LABELS_B = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
LAM = torch.tensor([1.0, 0.3, 0.5, 0.0])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(4, 3)


def test_class_weights_give_every_class_the_same_weight():
    weights = loss.class_weights([0] * 30 + [1] * 10, 2, balanced=True)
    assert weights.tolist() == pytest.approx([2 / 3, 2])
    assert loss.class_weights([0, 0, 1], 2, balanced=False).tolist() == [1, 1]


def test_a_mixed_loss_is_the_mixture_of_both_losses(logits):
    _, losses = loss.cross_entropy(logits, LABELS, LABELS_B, LAM, 0.0, 0.0, torch.ones(3))
    targets = LAM[:, None] * torch.eye(3)[LABELS] + (1 - LAM)[:, None] * torch.eye(3)[LABELS_B]
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))


def test_class_weights_scale_the_smoothed_loss_of_each_label(logits):
    weights = torch.tensor([0.5, 1.0, 4.0])
    first, second = (
        weights[labels] * F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
        for labels in (LABELS, LABELS_B)
    )
    _, plain = loss.cross_entropy(logits, LABELS, None, None, 0.1, 0.0, weights)
    torch.testing.assert_close(plain, first)
    _, mixed = loss.cross_entropy(logits, LABELS, LABELS_B, LAM, 0.1, 0.0, weights)
    torch.testing.assert_close(mixed, LAM * first + (1 - LAM) * second)


def test_class_weights_with_smoothing_learn_the_common_class_too():
    labels = [0] * 50 + [1] * 2
    y = torch.tensor(labels)
    x = torch.eye(2)[y]  # (N, 2), separable
    training = Training(class_weights=True, label_smoothing=0.1)
    criterion = loss.make_criterion(training, labels, 2, 0.0, torch.device("cpu"))
    weight = torch.zeros(2, 2, requires_grad=True)
    for _ in range(200):
        logits, losses = criterion(x @ weight, y, None, None)
        (gradient,) = torch.autograd.grad(losses.mean(), weight)
        weight.data -= gradient
    assert torch.equal(logits.argmax(1), y)


def test_auxiliary_losses_are_added_with_their_weight(logits):
    auxiliary = [logits.flip(0), logits.flip(1)]
    main, losses = loss.cross_entropy((logits, *auxiliary), LABELS, None, None, 0.0, 0.3, torch.ones(3))
    assert main is logits
    expected = [F.cross_entropy(each, LABELS, reduction="none") for each in (logits, *auxiliary)]
    torch.testing.assert_close(losses, expected[0] + 0.3 * (expected[1] + expected[2]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_epoch_and_what_to_change(value):
    loss.check_finite(1.0, epoch=4)
    with pytest.raises(UserError, match=f"the loss is {value} in epoch 5. Lower --lr"):
        loss.check_finite(value, epoch=4)
