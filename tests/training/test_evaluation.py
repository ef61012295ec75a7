"""Scores are exact, whatever the batches."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from support import reset_accelerate
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from finetune.config.settings import Images, Recipe, Training
from finetune.data import readers
from finetune.data.dataset import Draw
from finetune.data.loader import make_loaders
from finetune.data.transforms import to_input
from finetune.errors import UserError
from finetune.models.architectures import Preprocess
from finetune.training.evaluation import FIELDS, Scores, evaluate, padded
from finetune.training.step import Feed

PREPROCESS = Preprocess(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def made_up(logits: torch.Tensor, labels: torch.Tensor) -> Scores:
    """The scores of logits (N, classes) and labels (N,)."""
    probabilities, predictions = logits.softmax(1).topk(min(5, logits.shape[1]))
    return Scores(F.cross_entropy(logits, labels, reduction="none"), predictions, probabilities, labels)


@pytest.mark.parametrize("fill", [0, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 64])
def test_every_image_counts_once_for_every_remainder(image_folder, batch_size, fill):
    reset_accelerate()
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    accelerator = Accelerator(cpu=True)
    splits = readers.read(Images(data=str(image_folder)), 3, seed=0).splits
    recipe = Recipe(training=Training(eval_batch_size=batch_size))
    loader, asked = make_loaders(splits, PREPROCESS, recipe, accelerator)["val"], []
    scores = evaluate(Feed(model, loader, PREPROCESS), accelerator, True, lambda: asked.append(1), fill)

    samples = loader.dataset
    images = torch.stack([samples[Draw(0, k, 1.0)][0] for k in range(9)])
    labels = torch.tensor(samples.split.labels)
    with torch.no_grad():
        logits = model.eval()(to_input(images, PREPROCESS, torch.device("cpu"), True))
    assert torch.equal(scores.labels, labels)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert scores.accuracy == pytest.approx(multiclass_accuracy(logits, labels, 3, average="micro").item())
    assert scores.top5 == 1.0, "with three classes every class is among the first five"
    torch.testing.assert_close(scores.probabilities.sum(1), torch.ones(9))
    assert len(asked) == -(-9 // batch_size), "whether to stop is asked before each batch"


def test_a_batch_is_padded_with_its_last_image_and_never_cut():
    images = torch.arange(6.0).view(3, 2)
    assert padded(images, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert padded(images, 3) is images
    assert padded(images, 2) is images


def test_top5_equals_torchmetrics():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 20), torch.randint(20, (200,))
    expected = multiclass_accuracy(logits, labels, 20, average="micro", top_k=5).item()
    assert made_up(logits, labels).top5 == pytest.approx(expected)


def test_errors_are_the_misclassified_images_largest_loss_first():
    predictions, labels = torch.tensor([0, 0, 1, 2, 0, 0]), torch.tensor([0, 1, 1, 1, 1, 0])
    strength = torch.tensor([5.0, 5.0, 5.0, 9.0, 1.0, 5.0])[:, None]
    scores = made_up(F.one_hot(predictions, 3) * strength, labels)
    errors = scores.errors(["a", "b", "c"], [f"{k}.jpg" for k in range(6)])
    assert [error["image"] for error in errors] == ["3.jpg", "1.jpg", "4.jpg"]
    assert [(error["true"], error["predicted"]) for error in errors] == [("b", "c"), ("b", "a"), ("b", "a")]
    assert errors[0]["loss"] == pytest.approx(9.0, abs=1e-3)
    assert errors[0]["probability"] == pytest.approx(1.0, abs=1e-3)


def test_scores_are_written_and_read_back_and_damage_is_named(tmp_path):
    torch.manual_seed(0)
    scores, path = made_up(torch.randn(30, 3), torch.arange(30) % 3), tmp_path / "validation.safetensors"
    scores.save(path, epoch=7)
    again, epoch = Scores.load(path)
    assert epoch == 7
    assert all(torch.equal(getattr(again, name), getattr(scores, name)) for name in FIELDS)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="is damaged"):
        Scores.load(path)
