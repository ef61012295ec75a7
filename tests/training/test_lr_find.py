"""The range test leaves everything as it was and suggests a rate that trains."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support import metrics

from finetune.errors import UserError
from finetune.training import lr_find


def test_the_suggestion_lies_on_the_fall():
    rates = [10 ** (-6 + 7 * k / 99) for k in range(100)]
    losses = [1.0 if r < 1e-4 else max(0.2, 1 - 0.4 * np.log10(r / 1e-4)) if r < 1e-1 else 5.0 for r in rates]
    assert 1e-3 < lr_find.suggest(rates, losses) < 1e-1
    assert lr_find._longest_fall([3.0, 5.0, 4.0, 4.5, 3.5, 1.0, 9.0]) == (1, 5)


@pytest.mark.parametrize("losses", [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0, math.inf], [math.nan]])
def test_a_loss_that_never_falls_suggests_nothing(losses):
    with pytest.raises(UserError, match="the loss fell at no learning rate"):
        lr_find.suggest([10.0**k for k in range(len(losses))], losses)


@pytest.mark.slow
def test_the_model_is_left_as_it_was_and_the_suggested_rate_trains(train, monkeypatch, capsys):
    kept, original = {}, lr_find.range_test

    def spied(recipe, network, *rest):
        before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
        found = original(recipe, network, *rest)
        after = network.model.state_dict()
        kept["moved"] = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
        kept["tried"] = found[0]
        return found

    monkeypatch.setattr(lr_find, "range_test", spied)
    code, output = train("--recipe", "scratch", "--batch-size", "8", "--accumulate", "2", "--lr-find")
    assert code == 0
    assert kept["moved"] == []
    assert len(kept["tried"]) > 50
    assert {path.name for path in output.rglob("*") if path.is_file()} == {".lock", "config.json", "lr_find.png"}
    assert np.asarray(Image.open(output / "plots" / "lr_find.png").convert("L")).std() > 5
    suggested = re.search(r"--lr (\S+)", capsys.readouterr().out).group(1)
    _, trained = train("--recipe", "scratch", "--batch-size", "8", "--lr", suggested, "--epochs", "15")
    losses = [line["train_loss"] for line in metrics(trained)]
    assert losses[-1] < losses[0]
