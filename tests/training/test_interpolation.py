"""The weights between those before and after training."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import metrics

from finetune.training import interpolation
from finetune.training.evaluation import Scores
from finetune.training.state import score

FLAGS = ("--recipe", "best", "--weights", "starter", "--solver", "lbfgs", "--epochs", "2", "--keep-checkpoints", "1")


@pytest.fixture(
    params=[alpha if alpha == 0.5 else pytest.param(alpha, marks=pytest.mark.slow) for alpha in interpolation.ALPHAS]
)
def run(train, request, monkeypatch) -> tuple[float, Path]:
    """A run in which the weights of one mixture are picked."""
    monkeypatch.setattr(interpolation, "pick", lambda losses, values: request.param)
    code, output = train(*FLAGS)
    assert code == 0
    return request.param, output


def test_the_model_has_the_weights_of_the_best_mixture(run):
    alpha, output = run
    checkpoint = next((output / "checkpoints").iterdir())
    start, end = (load_file(checkpoint / f"{name}.safetensors") for name in ("start", "average"))
    model = load_file(output / "model" / "model.safetensors")
    assert model.keys() == start.keys() == end.keys()
    changed = 0
    for name, value in model.items():
        expected = torch.lerp(start[name], end[name], alpha) if value.is_floating_point() else end[name]
        assert torch.allclose(value, expected, rtol=1e-6, atol=1e-7), name
        changed += not torch.equal(start[name], end[name])
    assert changed > 100, "training changed the weights"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["interpolation"] == alpha
    assert summary["best_epoch"] == (2 if alpha else 0)


def test_the_result_is_no_worse_on_validation_than_the_head(train):
    code, output = train(*FLAGS, "--lr", "0.1")  # destroys the network
    assert code == 0
    history, summary = metrics(output), json.loads((output / "summary.json").read_text())
    assert [record["epoch"] for record in history] == [0, 1, 2]
    assert history[-1]["val_accuracy"] < history[0]["val_accuracy"]
    assert summary["best_val_accuracy"] >= history[0]["val_accuracy"]


def scores_of(wrong: int, first: int = 0, sure: float = 1.0, scale: float = 1.0) -> Scores:
    """The scores of 100 images of two classes: so many are wrong, from `first` on, and the others `sure` times as sure.

    What is wrong for another `first` is wrong for other images.
    """
    labels = torch.arange(100) % 2
    right = (torch.arange(100) < first) | (torch.arange(100) >= first + wrong)
    margin = torch.where(right, sure, -1.0) * scale
    logits = torch.stack((margin, -margin), 1)
    logits = torch.where(labels[:, None] == 0, logits, -logits)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return Scores(losses, logits.argmax(1, keepdim=True), torch.ones(100, 1), labels, logits)


def pick(scores: dict[float, Scores], best_by: str) -> float:
    losses = {alpha: interpolation.calibrated_losses(found) for alpha, found in scores.items()}
    return interpolation.pick(losses, {alpha: score(found.record(best_by), best_by) for alpha, found in scores.items()})


@pytest.mark.parametrize(
    ("mixtures", "picked"),
    [
        ([(9,), (9,), (9,), (9,)], 0.5),
        ([(8,), (9,), (9,), (9,)], 0.0),  # the others are worse than the head
        ([(9,), (8,), (7,), (8,)], 0.75),
        ([(9,), (8,), (7,), (6,)], 1.0),
        ([(9,), (8,), (7, 50), (6, 50)], 0.5),  # of other images one or two fewer are wrong, which is chance
        ([(9,), (8,), (7, 50), (1,)], 1.0),
        ([(9,), (10,), (8, 20), (7, 50)], 0.75),  # half-way is worse than the head
        ([(9,), (8,), (9, 0, 3.0), (9,)], 0.75),  # surer where it is right than where it is wrong
        ([(9,), (8,), (10, 0, 3.0), (9,)], 0.5),  # more wrong ones than the head
        ([(9,), (8, 0, 1.0, 10.0), (9,), (9,)], 0.5),  # overconfidence alone, which the temperature takes away
    ],
)
def test_the_nearest_to_half_way_is_picked_of_those_as_good_as_the_best_but_for_chance(mixtures, picked):
    scores = dict(zip(interpolation.ALPHAS, (scores_of(*mixture) for mixture in mixtures), strict=True))
    assert pick(scores, "accuracy") == picked


def test_one_validation_image_is_enough_to_pick_by():
    whole = scores_of(9)
    fields = (whole.losses, whole.predictions, whole.probabilities, whole.labels, whole.logits)
    scores = dict.fromkeys(interpolation.ALPHAS, Scores(*(field[-1:] for field in fields)))
    assert pick(scores, "accuracy") == 0.5


def test_the_losses_that_choose_are_printed(train, capfd):
    code, output = train(*FLAGS, "--calibrate")
    assert code == 0
    printed = re.findall(
        r"(\d+)% of the way from the solved head  val loss (\S+) when calibrated", capfd.readouterr().out
    )
    assert [int(way) / 100 for way, _ in printed] == list(interpolation.ALPHAS)
    summary = json.loads((output / "summary.json").read_text())
    losses = {int(way) / 100: float(loss) for way, loss in printed}
    assert losses[summary["interpolation"]] == pytest.approx(summary["calibrated_val_loss"], abs=1e-4)


@pytest.mark.parametrize("best_by", ["accuracy", "loss", "macro_f1", "balanced_accuracy", "auroc"])
def test_no_weights_are_picked_that_score_lower_than_the_head_by_the_metric_that_chooses(best_by):
    scores = dict(zip(interpolation.ALPHAS, (scores_of(count) for count in (9, 20, 30, 40)), strict=True))
    assert pick(scores, best_by) == 0.0


def test_a_resumed_run_chooses_the_same_weights(train):
    code, output = train(*FLAGS)
    model = (output / "model" / "model.safetensors").read_bytes()
    (output / "model" / "model.safetensors").unlink()
    again, _ = train(*FLAGS, "--output", str(output), "--resume")
    assert (code, again) == (0, 0)
    assert (output / "model" / "model.safetensors").read_bytes() == model


def test_without_a_solved_head_the_best_epoch_is_the_result(train):
    code, output = train("--recipe", "best")
    assert code == 0
    assert "interpolation" not in json.loads((output / "summary.json").read_text())
