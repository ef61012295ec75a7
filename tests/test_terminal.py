"""What a person is told."""

from pathlib import Path

import pytest

from finetune import terminal
from finetune.recipe import Rate, Training

THAW = [Rate(0.1, start=3), Rate(0.1, start=2), Rate(1.0)]  # further depths start in the third epoch and the fourth
RESULT = {
    **{"best_epoch": 3, "best_val_accuracy": 0.75, "best_val_loss": 0.5, "total_seconds": 12.3, "epochs_run": 5},
    **{"stopped_early": True, "val_images": 40},
}


@pytest.mark.parametrize(
    ("settings", "best", "why"),
    [
        (
            {"best_by": "accuracy", "patience": 2},
            "Best validation accuracy 0.7500 in epoch 3, after 12 s in all.",
            "Stopped early, after 5 epochs: validation accuracy was not higher for 2 epochs (--patience).",
        ),
        (
            {"best_by": "loss", "patience": 2, "min_delta": 0.05},
            "Lowest validation loss 0.5000 (accuracy 0.7500) in epoch 3, after 12 s in all.",
            "Stopped early, after 5 epochs: validation loss was not lower by 0.05 for 2 epochs (--patience).",
        ),
    ],
)
def test_the_end_says_which_figure_chose_the_epoch_and_which_one_ended_the_run(settings, best, why):
    training = Training(**settings)
    lines = terminal.ending(RESULT, Path("runs/mine"), training).splitlines()
    assert lines[:3] == ["", why, best]
    whole = terminal.ending(RESULT | {"stopped_early": False}, Path("runs/mine"), training).splitlines()
    assert whole == ["", *lines[2:]]


@pytest.mark.parametrize(
    ("accuracies", "images", "told"),
    [
        ((0.5, 0.78, 0.66), 200, True),  # a standard error is 0.032
        ((0.5, 0.78, 0.73), 200, False),
        ((0.5, 0.78, 0.73), 2000, True),
        ((0.5, 0.78, 0.78, 0.66), 200, True),
        ((0.78, 0.66), 200, False),  # nothing began
        ((0.5, 0.6, 0.7, 0.78, 0.66), 200, False),
        ((0.5, 1.0, 0.99), 100, False),
        ((0.5, 0.66, 0.78), 200, False),
        ((0.78,), 200, False),
    ],
)
def test_a_collapse_where_further_depths_start_is_told(accuracies, images, told):
    history = [{"val_accuracy": accuracy} for accuracy in accuracies]
    said = terminal.collapse(history, THAW, images, batchnorm=True)
    assert bool(said) == told
    if told:
        before, now = accuracies[-2:]
        assert f"from {before:.4f} to {now:.4f} in epoch {len(accuracies)}, which began to train" in said
        assert "a larger --batch-size" in said
        assert "--batch-size" not in terminal.collapse(history, THAW, images, batchnorm=False)


def test_a_run_that_collapses_says_so(train, monkeypatch, capsys):
    monkeypatch.setattr("finetune.evaluate.Scores.accuracy", property(lambda scores: next(accuracies)))
    accuracies = iter((1.0, 0.0, 0.0))
    assert train("--recipe", "linear_then_finetune", "--head-epochs", "1", "--epochs", "2")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [k for k, line in enumerate(lines) if line.startswith("epoch 2/2")]
    assert lines[at + 1].startswith("Validation accuracy fell from 1.0000 to 0.0000 in epoch 2")
