"""The estimated memory of a step, and what to lower when it runs out."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from support import ROOT, with_defaults
from torch import nn

from finetune.config.settings import Training
from finetune.data.sampler import smallest_micro_batch
from finetune.models import gradient_checkpointing
from finetune.reporting import memory
from finetune.training import loss

GIB = 2**30


def test_the_estimated_activations_are_those_that_autograd_saves_and_a_layers_own():
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 3))
    need = memory.estimate(model, (5, 8), 3, "adamw", "no")
    weights = 4 * (8 * 16 + 16 + 16 * 3 + 3)
    # The peak is at the sigmoid: the saved input of the first layer (8), its own input and its own, saved output.
    assert need == memory.Memory(weights, weights, 2 * weights, activations=4 * 5 * (8 + 16 + 16))
    model[0].requires_grad_(False)
    trained = 4 * (16 * 3 + 3)
    assert memory.estimate(model, (5, 8), 3, "sgd", "no") == memory.Memory(weights, trained, trained, 4 * 5 * (16 + 16))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_frozen_network_needs_its_largest_layers_input_and_output():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(64, 3)).requires_grad_(False)
    assert memory.estimate(model, (5, 8), 3, "adamw", "no").activations == 4 * 5 * (16 + 64)


def test_with_gradient_checkpointing_the_inputs_of_all_blocks_are_kept_and_the_activations_of_one():
    blocks = [nn.Sequential(nn.Linear(8, 64), nn.Sigmoid(), nn.Linear(64, 8)) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.Linear(8, 3))
    # At the last sigmoid: the inputs of all blocks, and the sigmoids' outputs of all; its own input is not saved.
    assert memory.estimate(model, (5, 8), 3, "sgd", "no").activations == 4 * 5 * (3 * (8 + 64) + 64)
    gradient_checkpointing.enable(blocks)
    assert memory.estimate(model, (5, 8), 3, "sgd", "no").activations == 4 * 5 * (3 * 8 + 64 + 64)


def advised(count, batch_size, accumulate=1, processes=1, batchnorm=True, activations=10 * GIB, free=5 * GIB):
    need = memory.Memory(weights=0, gradients=0, optimizer=0, activations=activations)
    training = Training(batch_size=batch_size, accumulate=accumulate)
    smallest = partial(smallest_micro_batch, count) if batchnorm else None
    return memory.advice(need, free, training, processes, smallest).partition("were free. ")[2]


def test_the_advice_for_memory_is_one_that_batchnorm_can_follow():
    eval_too = "; in evaluation, a smaller --eval-batch-size."
    changed = "(BatchNorm then takes its statistics of fewer images, and the result changes)"
    assert advised(1000, 8, batchnorm=False) == (
        f"Use --accumulate 4 (the result stays the same) or --batch-size 2{eval_too}"
    )
    assert advised(1000, 8) == f"Use --accumulate 4 {changed} or --batch-size 2{eval_too}"
    assert advised(1005, 8) == f"Use --batch-size 2{eval_too}", "five images are too few for four micro-batches"
    assert advised(1000, 8, processes=2) == "Take a smaller --model or --image-size."
    assert advised(25, 10, processes=2, free=9 * GIB) == f"Use --batch-size 5{eval_too}"
    assert advised(28, 10, processes=2, free=9 * GIB) == f"Use --accumulate 2 {changed} or --batch-size 4{eval_too}"


@pytest.mark.parametrize(("size", "words"), [(5 * 2**20, "5 MiB"), (3 * 2**29, "1.50 GiB")])
def test_sizes_have_a_unit_that_fits(size, words):
    assert memory.in_bytes(size) == words


# ---- out of memory ---------------------------------------------------------------------------------------------------
LIMITED = """
import resource

import psutil

import train
from finetune.runtime import entry
from finetune.training import param_groups

original = param_groups.make_optimizer


def make_optimizer(*arguments):
    # Enough for the images (62 MB), not for the first layer's activations (197 MB). Close to a limit, the first to fail
    # may be oneDNN, whose error does not say why.
    limit = psutil.Process().memory_info().vms + 120 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return original(*arguments)


param_groups.make_optimizer = make_optimizer
entry.run(train.main)
"""


@pytest.mark.slow
def test_out_of_memory_says_which_setting_to_lower_and_to_what(image_folder, tmp_path):
    large = ("--model", "squeezenet1_0", "--image-size", "512", "--batch-size", "16", "--epochs", "1")
    flags = ("--data", str(image_folder), "--output", str(tmp_path / "run"), "--recipe", "finetune", *large)
    # A process of its own: a fork of this one would have the free memory that earlier tests left in its heap.
    command = [sys.executable, "-c", LIMITED, *with_defaults(list(flags))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: out of memory. A step was estimated to need" in done.stderr
    assert "Use --accumulate 2 (the result stays the same) or --batch-size 8" in done.stderr
    assert "Traceback" not in done.stderr


def test_out_of_memory_on_a_gpu_gets_the_same_message(train, monkeypatch, capsys):
    def cross_entropy(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loss, "cross_entropy", cross_entropy)
    assert train("--batch-size", "8")[0] == 2
    assert "error: out of memory. A step was estimated to need" in capsys.readouterr().err
