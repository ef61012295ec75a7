"""What a person is told."""

from pathlib import Path

import pytest

from finetune import terminal
from finetune.recipe import Training

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
