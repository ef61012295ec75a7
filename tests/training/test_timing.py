"""Times before a run, and the epochs that a budget leaves."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support import build_network
from torch.utils.flop_counter import FlopCounterMode

from finetune.config.settings import Rate, Recipe, Training
from finetune.data.loader import make_loaders
from finetune.data.types import Split
from finetune.errors import UserError
from finetune.training import head_solver, timing
from finetune.training.timing import MARGIN, Estimate

MINUTE = 60 * (1 - MARGIN)  # seconds of a budget's minute that are given out


def fitted(
    epochs: int, minutes: float | None, estimate: Estimate, spent: float = 0.0, before: int | None = None
) -> int:
    recipe = Recipe(training=Training(epochs=epochs, minutes=minutes))
    return timing.fit(recipe, estimate, spent, before).training.epochs


@pytest.mark.parametrize(
    ("minutes", "spent", "epochs"),
    [(None, 0.0, 20), (100.0, 0.0, 20), (10.0, 0.0, 8), (10.0, MINUTE, 7), (2.0, 0.0, 0)],
)
def test_a_budget_leaves_the_epochs_that_fit(minutes, spent, epochs):
    # The head and the evaluation at the end take a minute each, and so does an epoch.
    estimate = Estimate(head=0.999 * MINUTE, epoch=MINUTE, end=0.999 * MINUTE)
    assert fitted(20, minutes, estimate, spent) == epochs


def test_a_resumed_run_keeps_its_epochs():
    slower = Estimate(head=1e6, epoch=1e6, end=0.0)
    assert fitted(20, 10.0, slower, before=8) == 8


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        (Estimate(head=600, epoch=1, end=0), "--minutes 1 is too short: the head alone takes about 12 minutes"),
        (Estimate(head=0, epoch=600, end=0), "--minutes 1 is too short: one epoch takes about 12 minutes"),
    ],
)
def test_a_budget_too_small_for_any_result_is_a_mistake(estimate, message):
    with pytest.raises(UserError, match=message):
        fitted(10, 1.0, estimate)


def test_a_budget_too_small_writes_nothing(train, capsys):
    code, output = train("--recipe", "best", "--minutes", "1e-5")
    assert code == 2
    assert "--minutes 1e-05 is too short" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_measurement_leaves_the_network_as_it_is(device, monkeypatch):
    network = build_network([None, None, None, None, Rate(1.0), Rate(1.0)])
    network.model.to(device)
    network.set_phase(0)
    images = Split([torch.zeros(3, 64, 64, dtype=torch.uint8).numpy()] * 5, [0, 1, 2, 0, 1])
    recipe, accelerator = Recipe(), Accelerator(cpu=True)
    loaders = make_loaders({"train": images, "val": images, "test": images}, network.preprocess, recipe, accelerator)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    asks = [parameter.requires_grad for parameter in network.model.parameters()]
    found = timing.measure(recipe, network, loaders, accelerator, views=2)
    assert 0 < found.end < found.head < 60
    assert 0 < found.epoch < 60
    assert timing.measure(recipe, network, loaders, accelerator, views=0).head == 0
    monkeypatch.setattr(timing, "_solving", lambda *_: 1000.0)
    assert 1000 < timing.measure(recipe, network, loaders, accelerator, views=2).head < 1060
    after = network.model.state_dict()
    assert device == "meta" or all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.device.type == device for value in after.values())
    assert [parameter.requires_grad for parameter in network.model.parameters()] == asks
    assert all(parameter.grad is None for parameter in network.model.parameters())


@pytest.mark.parametrize(
    ("images", "views", "l2", "heads"), [(500, 1, None, 6), (7000, 2, None, 3), (7000, 4, 0.01, 1)]
)
def test_the_solvers_time_is_that_of_its_products(monkeypatch, images, views, l2, heads):
    network = build_network([None, None, None, None, Rate(1.0), Rate(1.0)])
    classes, features = network.head.weight.shape

    def seconds(work, device):  # at one floating-point operation a second
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    monkeypatch.setattr(timing, "_seconds", seconds)
    products = 4 * images * views * features * classes * heads  # logits and gradient
    found = timing._solving(l2, network, images, views, torch.device("cpu"))
    assert found == pytest.approx(head_solver.EVALUATIONS * products)


@pytest.mark.parametrize(("elapsed", "is_over"), [(50.0, False), (115.0, True)])
def test_an_epoch_that_would_exceed_the_budget_is_not_begun(elapsed, is_over):
    state = SimpleNamespace(epoch=1, history=[{"seconds": 9.0}], run_clock=SimpleNamespace(seconds=elapsed))
    assert timing.is_over(2.0, state, Accelerator(cpu=True)) == is_over
    assert not timing.is_over(None, state, Accelerator(cpu=True))


def test_a_run_out_of_time_ends_early_and_says_so(train, monkeypatch, capsys):
    monkeypatch.setattr(timing, "is_over", lambda minutes, state, accelerator: state.epoch == 1)
    code, output = train("--recipe", "finetune", "--minutes", "30", "--epochs", "3")
    summary = json.loads((output / "summary.json").read_text())
    assert (code, summary["epochs_run"], summary["stopped_early"]) == (0, 1, True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Stopped early, after 1 epochs: another would have exceeded 30 minutes (--minutes)." in shown


def test_where_no_epoch_fits_the_solved_head_is_the_result(train, monkeypatch):
    measure = timing.measure
    slow = lambda *arguments: replace(measure(*arguments), epoch=1e9)  # noqa: E731
    monkeypatch.setattr(timing, "measure", slow)
    code, output = train("--recipe", "best", "--weights", "starter", "--solver", "lbfgs")
    summary = json.loads((output / "summary.json").read_text())
    assert (code, summary["epochs_run"], summary["best_epoch"], summary["stopped_early"]) == (0, 0, 0, False)
    assert "l2" in summary
    assert "interpolation" not in summary


@pytest.mark.parametrize(
    ("took", "expected", "calls"),
    [
        ((5.0, 0.1, 3.0), 0.1, 3),  # warm-up, and other load
        ((0.3, 0.2, 0.1), 0.1, 3),
        ((6.0, 5.0, 1.0), 5.0, 2),  # enough time was spent
        ((20.0, 1.0, 1.0), 20.0, 1),
    ],
)
def test_a_call_that_other_load_disturbed_does_not_count(monkeypatch, took, expected, calls):
    now, made = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += took[len(made)]
        made.append(None)

    assert timing._seconds(work, torch.device("cpu")) == pytest.approx(expected)
    assert len(made) == calls
