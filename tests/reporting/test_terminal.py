"""What a run prints."""

from pathlib import Path

import pytest

from finetune.config.settings import Rate, Training
from finetune.reporting import terminal
from finetune.training.schedule import peak_rate

RATES = [Rate(0.1, start=3), Rate(0.1, start=2), Rate(1.0)]  # further depths start in the third epoch and the fourth
RESULT = {
    **{"best_epoch": 3, "best_val_accuracy": 0.75, "best_val_loss": 0.5, "total_seconds": 12.3, "epochs_run": 5},
    **{"stopped_early": True, "val_images": 40, "best_val_macro_f1": 0.7},
}


@pytest.mark.parametrize(
    ("settings", "best", "why"),
    [
        (
            {"best_by": "accuracy", "patience": 2},
            "Best validation accuracy 0.7500 in epoch 3, after 12 s in all.",
            "Stopped early, after 5 epochs: validation accuracy did not improve for 2 epochs (--patience).",
        ),
        (
            {"best_by": "loss", "patience": 2, "min_delta": 0.05},
            "Lowest validation loss 0.5000 (accuracy 0.7500) in epoch 3, after 12 s in all.",
            "Stopped early, after 5 epochs: validation loss did not improve by 0.05 for 2 epochs (--patience).",
        ),
        (
            {"best_by": "macro_f1", "patience": 2},
            "Best validation macro f1 0.7000 (accuracy 0.7500) in epoch 3, after 12 s in all.",
            "Stopped early, after 5 epochs: validation macro_f1 did not improve for 2 epochs (--patience).",
        ),
    ],
)
def test_the_ending_says_which_metric_chose_the_epoch_and_which_one_stopped_the_run(settings, best, why):
    training = Training(**settings)
    lines = terminal.ending(RESULT, Path("runs/mine"), training).splitlines()
    assert lines[:3] == ["", why, best]
    whole = terminal.ending(RESULT | {"stopped_early": False}, Path("runs/mine"), training).splitlines()
    assert whole == ["", *lines[2:]]


@pytest.mark.parametrize(
    ("folds", "end"), [({"fold_loss": 0.4}, ": training images that were held out chose the strength."), ({}, ".")]
)
def test_the_ending_says_what_chose_a_solved_heads_strength(folds, end):
    result = RESULT | {"stopped_early": False, "epochs_run": 0, "l2": 0.01, **folds}
    lines = terminal.ending(result, Path("runs/mine"), Training()).splitlines()
    assert lines[2] == f"The validation images chose nothing{end}"


@pytest.mark.parametrize(
    ("mixed", "settings", "best"),
    [
        (0.0, {"best_by": "accuracy"}, "Validation accuracy 0.7500 with the solved head"),
        (0.5, {"best_by": "accuracy"}, "Validation accuracy 0.7500 50% of the way from the solved head to epoch 5"),
        (
            0.5,
            {"best_by": "loss"},
            "Validation loss 0.5000 (accuracy 0.7500) 50% of the way from the solved head to epoch 5",
        ),
    ],
)
def test_the_ending_claims_no_best_score_for_weights_between_two(mixed, settings, best):
    result = RESULT | {"stopped_early": False, "interpolation": mixed}
    assert (
        terminal.ending(result, Path("runs/mine"), Training(**settings)).splitlines()[1]
        == f"{best}, after 12 s in all."
    )


def test_the_rate_s_line_advises_more_epochs_where_the_head_is_unsure():
    rates = [peak_rate("auto", [{"fold_loss": loss}]) for loss in (0.1, 1.6, 1.7, 3.0)]
    assert [("more --epochs" in terminal.rate_line(rate)) for rate in rates] == [False, False, True, True]
    assert terminal.rate_line(rates[0]) == "peak learning rate 0.0002 (--lr auto)"


@pytest.mark.parametrize(
    ("accuracies", "images", "warned"),
    [
        ((0.5, 0.78, 0.66), 200, True),  # a standard error is 0.032
        ((0.5, 0.78, 0.73), 200, False),
        ((0.5, 0.78, 0.73), 2000, True),
        ((0.5, 0.78, 0.78, 0.66), 200, True),
        ((0.78, 0.66), 200, False),  # no depth started
        ((0.5, 0.6, 0.7, 0.78, 0.66), 200, False),
        ((0.5, 1.0, 0.99), 100, False),
        ((0.5, 0.66, 0.78), 200, False),
        ((0.78,), 200, False),
    ],
)
def test_accuracy_that_falls_where_further_depths_start_gets_a_warning(accuracies, images, warned):
    history = [{"epoch": epoch, "val_accuracy": accuracy} for epoch, accuracy in enumerate(accuracies, 1)]
    warning = terminal.collapse(history, RATES, images, batchnorm=True)
    assert bool(warning) == warned
    if warned:
        before, now = accuracies[-2:]
        assert f"from {before:.4f} to {now:.4f} in epoch {len(accuracies)}, which began to train" in warning
        assert "a larger --batch-size" in warning
        assert "--batch-size" not in terminal.collapse(history, RATES, images, batchnorm=False)


def test_a_run_prints_the_warning_below_the_epoch(train, monkeypatch, capsys):
    monkeypatch.setattr("finetune.training.evaluation.Scores.accuracy", property(lambda scores: next(accuracies)))
    accuracies = iter((1.0, 0.0, 0.0))
    assert train("--recipe", "linear_then_finetune", "--head-epochs", "1", "--epochs", "2")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [k for k, line in enumerate(lines) if line.startswith("epoch 2/2")]
    assert lines[at + 1].startswith("Validation accuracy fell from 1.0000 to 0.0000 in epoch 2")


def test_the_remaining_time_is_estimated_once_without_the_first_step(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 8.0, 12.0, 99.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    estimate = terminal.TimeEstimate(103, terminal.make_console(True))
    for step in range(1, 6):  # four seconds a step
        estimate.update(step)
    assert capsys.readouterr().out.split("\n") == ["About 7 min for the remaining 99 steps, without validation.", ""]


@pytest.mark.parametrize(("seconds", "words"), [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")])
def test_durations_have_a_unit_that_fits(seconds, words):
    assert terminal.duration(seconds) == words


def test_only_the_main_process_prints_and_brackets_are_no_markup(capsys):
    for main_process in (True, False):
        terminal.make_console(main_process).print("/data/[red]/runs")
    assert capsys.readouterr().out == "/data/[red]/runs\n"
