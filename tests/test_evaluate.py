"""Scores are exact, whatever the batches."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from finetune import data, folders
from finetune.archs import Preprocess
from finetune.evaluate import Scores, evaluate
from finetune.recipe import Recipe, Training
from finetune.samples import Draw, to_input

PREPROCESS = Preprocess(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 64])
def test_every_image_counts_once_for_every_remainder(image_folder, batch_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    accelerator = Accelerator(cpu=True)
    splits = folders.read(image_folder, 0.2, 0, False).splits
    recipe = Recipe(training=Training(eval_batch_size=batch_size))
    loader = data.make_loaders(splits, PREPROCESS, recipe, accelerator)["val"]
    scores = evaluate(model, loader, PREPROCESS, True, accelerator)

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


def test_top5_equals_torchmetrics():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 20), torch.randint(20, (200,))
    probabilities, guesses = logits.softmax(1).topk(5)
    scores = Scores(F.cross_entropy(logits, labels, reduction="none"), guesses, probabilities, labels)
    assert scores.top5 == pytest.approx(multiclass_accuracy(logits, labels, 20, average="micro", top_k=5).item())
