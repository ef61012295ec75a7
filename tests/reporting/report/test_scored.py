"""The scores that a report tells of."""

import torch
from torch.nn import functional as F
from written_runs import TEMPERATURE, write_run

from finetune.reporting.report import subject
from finetune.training.evaluation import Scores


def test_the_temperature_is_undone_where_all_probabilities_are_known(image_folder, tmp_path):
    read = subject.read(write_run(tmp_path / "run", image_folder))
    scores, _ = Scores.load(read.folder / "validation.safetensors")
    logits = torch.empty(9, 3).scatter_(1, scores.predictions, scores.probabilities.log())
    expected = (logits * TEMPERATURE).softmax(1).max(1).values
    found = read.result.uncalibrated
    assert torch.allclose(torch.from_numpy(found.confidence), expected.double(), atol=1e-6)
    assert found.predicted.tolist() == scores.predictions[:, 0].tolist()
    assert (found.confidence > scores.probabilities[:, 0].numpy()).all(), "a temperature above 1 lowers confidence"


def test_test_scores_come_before_validation_scores(image_folder, tmp_path):
    read = subject.read(write_run(tmp_path / "run", image_folder, folds=3, fold=2))
    scores, _ = Scores.load(read.folder / "test.safetensors")
    assert read.result.split == "test"
    assert read.result.images.labels == scores.labels.tolist()
    logits = scores.logits * TEMPERATURE
    expected = logits.softmax(1).gather(1, scores.predictions[:, :1])[:, 0]
    assert torch.allclose(torch.from_numpy(read.result.uncalibrated.confidence), expected.double(), atol=1e-6)
    assert torch.allclose(F.cross_entropy(scores.logits, scores.labels, reduction="none"), scores.losses, atol=1e-5)
