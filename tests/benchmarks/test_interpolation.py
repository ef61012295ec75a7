"""The benchmark of the ways to choose a mixture of weights."""

import json
import shutil

import pytest
import torch
from support import write_images

from benchmarks import interpolation
from finetune.training.interpolation import ALPHAS


@pytest.fixture
def run(train, image_folder, tmp_path):
    """A finished run of `best` on images with a test split."""
    data = tmp_path / "images"
    shutil.copytree(image_folder, data)
    write_images(data / "test", 5, seed=2)
    flags = ("--recipe", "best", "--weights", "starter", "--solver", "lbfgs", "--epochs", "2", "--lr", "3e-3")
    code, output = train(*flags, data=data)
    assert code == 0
    return output


@pytest.mark.slow
def test_the_mixtures_are_those_of_the_run_and_each_way_has_their_accuracy(run):
    summary = json.loads((run / "summary.json").read_text())
    scores, validation_images = interpolation.scores_of(run)
    assert validation_images == summary["val_images"]
    assert list(scores) == list(ALPHAS)
    assert scores[summary["interpolation"]].accuracy == pytest.approx(summary["test_accuracy"])
    assert not torch.equal(scores[0.0].logits, scores[1.0].logits), "training changed the weights"
    accuracies = [found.accuracy for found in scores.values()]
    ways = interpolation.measure(run, draws=200)
    for way, alpha in (("head", 0.0), ("half-way", 0.5), ("three quarters", 0.75), ("trained", 1.0)):
        assert ways[way] == pytest.approx(scores[alpha].accuracy, abs=0.05), "the mean over draws"
    for way in ("highest accuracy", "lowest loss", "best"):
        assert min(accuracies) - 0.05 <= ways[way] <= max(accuracies) + 0.05
