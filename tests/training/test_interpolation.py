"""The weights between those before and after training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import metrics

from finetune.training import interpolation

FLAGS = ("--recipe", "best", "--weights", "starter", "--solver", "lbfgs", "--epochs", "2", "--keep-checkpoints", "1")


@pytest.fixture(
    params=[share if share == 0.5 else pytest.param(share, marks=pytest.mark.slow) for share in interpolation.SHARES]
)
def run(train, request, monkeypatch) -> tuple[float, Path]:
    """A run in which the weights of one share are the best."""
    is_better = interpolation.is_better

    def best(record: dict, other: dict | None, best_by: str) -> bool:
        return other is None or record["interpolation"] == request.param

    assert is_better({"val_accuracy": 0.5, "val_loss": 1.0}, None, "accuracy")
    monkeypatch.setattr(interpolation, "is_better", best)
    code, output = train(*FLAGS)
    assert code == 0
    return request.param, output


def test_the_model_has_the_weights_of_the_best_share(run):
    share, output = run
    checkpoint = next((output / "checkpoints").iterdir())
    start, end = (load_file(checkpoint / f"{name}.safetensors") for name in ("start", "average"))
    model = load_file(output / "model" / "model.safetensors")
    assert model.keys() == start.keys() == end.keys()
    changed = 0
    for name, value in model.items():
        expected = torch.lerp(start[name], end[name], share) if value.is_floating_point() else end[name]
        assert torch.allclose(value, expected, rtol=1e-6, atol=1e-7), name
        changed += not torch.equal(start[name], end[name])
    assert changed > 100, "training changed the weights"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["interpolation"] == share
    assert summary["best_epoch"] == (2 if share else 0)


def test_the_result_is_no_worse_on_validation_than_both_ends(train):
    code, output = train(*FLAGS, "--lr", "0.1")  # destroys the network
    assert code == 0
    history, summary = metrics(output), json.loads((output / "summary.json").read_text())
    assert [record["epoch"] for record in history] == [0, 1, 2]
    assert history[-1]["val_accuracy"] < history[0]["val_accuracy"]
    assert summary["best_val_accuracy"] >= history[0]["val_accuracy"]


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
