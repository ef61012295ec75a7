"""The weights between those before and after training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import metrics

from finetune.training import interpolation
from finetune.training.evaluation import Scores

FLAGS = ("--recipe", "best", "--weights", "starter", "--solver", "lbfgs", "--epochs", "2", "--keep-checkpoints", "1")


@pytest.fixture(
    params=[alpha if alpha == 0.5 else pytest.param(alpha, marks=pytest.mark.slow) for alpha in interpolation.ALPHAS]
)
def run(train, request, monkeypatch) -> tuple[float, Path]:
    """A run in which the weights of one mixture are picked."""
    monkeypatch.setattr(interpolation, "pick", lambda scores, best_by: request.param)
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


def scores_of(right: list[bool], labels: list[int], losses: list[float] | None = None) -> Scores:
    """Scores of images that are classified rightly or not, of two classes."""
    known = torch.tensor(labels)
    predictions = torch.where(torch.tensor(right), known, 1 - known)[:, None]
    logits = torch.nn.functional.one_hot(predictions[:, 0], 2).float()
    return Scores(torch.tensor(losses or [1.0] * len(labels)), predictions, torch.ones_like(predictions), known, logits)


def scores_of_wrong(*wrong: int) -> dict[float, Scores]:
    """The scores of each mixture, from its number of wrong images of 100; those of a worse one are wrong for it too."""
    labels = [k % 2 for k in range(100)]
    found = (scores_of([k >= count for k in range(100)], labels) for count in wrong)
    return dict(zip(interpolation.ALPHAS, found, strict=True))


@pytest.mark.parametrize(
    ("wrong", "picked"),
    [
        ((9, 9, 9, 9), 0.5),
        ((9, 8, 9, 9), 0.5),
        ((8, 9, 9, 9), 0.0),  # half of the way is worse than the head
        ((9, 9, 8, 8), 0.5),  # one image more is within the standard error
        ((9, 9, 7, 8), 0.75),
        ((9, 9, 7, 6), 1.0),
        ((8, 9, 9, 7), 0.0),  # compared with the head, where it stays
        ((8, 9, 9, 6), 1.0),
    ],
)
def test_half_of_the_way_is_picked_unless_others_show_to_be_better(wrong, picked):
    assert interpolation.pick(scores_of_wrong(*wrong), "accuracy") == picked


@pytest.mark.parametrize(
    ("gained", "lost", "clear"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, True),  # 2 images, with a standard error of 1.4
        (4, 2, False),  # 2, with one of 2.4
        (6, 2, True),  # 4, with one of 2.8
        (2, 4, False),
    ],
)
def test_a_gain_is_clear_above_its_standard_error(gained, lost, clear):
    labels = [k % 2 for k in range(100)]
    before = scores_of([k >= gained for k in range(100)], labels)
    after = scores_of([k < 100 - lost for k in range(100)], labels)
    assert interpolation.is_clear(after, before, "accuracy") == clear


def test_a_gain_counts_by_the_metric_that_chooses():
    labels = [0] * 90 + [1] * 10
    before = scores_of([k < 94 for k in range(100)], labels, [1.0] * 100)  # 6 of the rare class are wrong
    after = scores_of([k >= 8 for k in range(100)], labels, [0.9 + 0.1 * (k % 2) for k in range(100)])
    assert not interpolation.is_clear(after, before, "accuracy")
    assert interpolation.is_clear(after, before, "balanced_accuracy")
    assert interpolation.is_clear(after, before, "loss")
    assert not interpolation.is_clear(before, after, "loss")


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
