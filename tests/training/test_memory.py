"""`--accumulate auto`: where memory runs out, a step begins anew in twice the micro-batches."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import metrics

from finetune.training import step as step_module
from finetune.training.step import TrainingStep

# Dropout in the middle of the network and no BatchNorm; batches of 8, 8 and 5 images.
FLAGS = ("--recipe", "finetune", "--model", "squeezenet1_1", "--batch-size", "8", "--lr", "1e-2")


def limit_memory(monkeypatch, images: int, error: Exception | None = None) -> list[int]:
    """Let micro-batches of more images fail in the backward pass; the list gets the sizes of all that are tried."""
    tried, to_input = [], step_module.to_input
    error = error or torch.OutOfMemoryError("CUDA out of memory.")

    class Fail(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error

    def limited(x, *rest):
        tried.append(len(x))
        found = to_input(x, *rest)
        return Fail.apply(found.requires_grad_()) if len(x) > images else found

    monkeypatch.setattr(step_module, "to_input", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory."), marks=pytest.mark.slow),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_the_weights_are_those_of_a_run_with_that_many_micro_batches(train, monkeypatch, capsys, error):
    _, expected = train(*FLAGS, "--accumulate", "4")
    with monkeypatch.context() as patched:
        tried = limit_memory(patched, images=2, error=error)
        code, output = train(*FLAGS, "--accumulate", "auto")
    assert code == 0
    assert tried[:4] == [8, 4, 2, 2], "whole, in two, in four"
    assert max(tried[2:]) == 2, "the number is kept"
    assert metrics(output) == metrics(expected)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (expected, output))
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert "Out of memory in step 1: from now on 4 micro-batches a step." in capsys.readouterr().out
    assert json.loads((output / "summary.json").read_text())["accumulate"] == 4
    assert json.loads((output / "config.json").read_text())["accumulate"] == "auto"


def test_where_memory_suffices_nothing_is_split(train):
    (_, whole), (_, output) = train(*FLAGS), train(*FLAGS, "--accumulate", "auto")
    assert metrics(output) == metrics(whole)
    assert json.loads((output / "summary.json").read_text())["accumulate"] == 1


def test_a_resumed_run_goes_on_with_the_number_it_found(train, monkeypatch):
    limit_memory(monkeypatch, images=2)
    code, output = train(*FLAGS, "--accumulate", "auto", "--epochs", "1")
    assert code == 0
    tried = limit_memory(monkeypatch, images=2)
    code, _ = train(*FLAGS, "--accumulate", "auto", "--epochs", "2", "--output", str(output), "--resume")
    assert code == 0
    assert tried[0] == 2


@pytest.mark.slow
def test_a_single_image_that_does_not_fit_ends_with_a_message(train, monkeypatch, capsys):
    limit_memory(monkeypatch, images=0)
    code, _ = train(*FLAGS, "--accumulate", "auto")
    assert code == 2
    assert "out of memory with a single image at a time (--accumulate auto)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_other_errors_keep_their_traceback(train, monkeypatch):
    limit_memory(monkeypatch, images=2, error=RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        train(*FLAGS, "--accumulate", "auto")


def test_trained_batchnorm_and_auto_do_not_go_together(train, capsys):
    flags = ("--recipe", "finetune", "--accumulate", "auto")
    code, output = train(*flags)
    assert code == 2
    assert "--accumulate auto needs a result that does not depend on the micro-batches" in capsys.readouterr().err
    assert not output.exists()
    assert train(*flags, "--weights", "starter", "--batchnorm", "keep")[0] == 0


@pytest.mark.usefixtures("float64")
def test_two_processes_split_their_batches_together(start, monkeypatch):
    alone = start("alone", *FLAGS, "--optimizer", "sgd")
    assert alone.wait() == [0], alone.said
    gradients = TrainingStep._gradients

    def limited(self, feed, micro_batches, step):
        # One process alone runs out of memory, after it has some gradients.
        found = gradients(self, feed, micro_batches, step)
        if self.accelerator.process_index == 1 and len(micro_batches) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found

    monkeypatch.setattr(TrainingStep, "_gradients", limited)
    run = start("auto", *FLAGS, "--optimizer", "sgd", "--accumulate", "auto", processes=2)
    assert set(run.wait()) == {0}, run.said
    assert json.loads((run.output / "summary.json").read_text())["accumulate"] == 2
    one, other = (load_file(run.output / "model" / "model.safetensors") for run in (alone, run))
    for name, value in one.items():
        # Rounding in float64; the saved weights are float32.
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-7, msg=name)
