"""What safety costs: a checkpoint, agreeing on signals at every step, a seed for every sample.

    python -m benchmarks.overhead                          # model resnet50, 2 processes
    python -m benchmarks.overhead --model resnet18

Each is timed against related work in the same process: a checkpoint against copying and writing the same bytes, the
agreement against a step, the seeding against loading and augmenting an image. Medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import save_file
from torch import nn

from finetune import recipes
from finetune.config.settings import Net
from finetune.data import readers
from finetune.data.dataset import Draw
from finetune.data.loader import make_loaders
from finetune.models import network
from finetune.models.metadata import Metadata
from finetune.runtime import devices, files
from finetune.training.checkpoint import Checkpoints
from finetune.training.interrupts import Interrupts
from finetune.training.param_groups import make_optimizer
from finetune.training.state import State
from finetune.training.step import zero_sums


def seconds(work: Callable[[], object], times: int) -> float:
    """The median time of one call."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def built(model_name: str, **settings: object) -> tuple[network.Network, torch.optim.Optimizer]:
    """A network for ten classes, all of which is trained, and SGD over it."""
    settings = {"model": model_name, "weights": "none", "optimizer": "sgd", **settings}
    recipe = recipes.from_settings("finetune", settings)
    net = network.build(recipe, 10)
    return net, make_optimizer(net, recipe.training)


def checkpoints(model_name: str) -> str:
    """Saving a whole fine-tuning run with SGD against copying and writing the same tensors."""
    accelerator = Accelerator(cpu=True)
    net, optimizer = built(model_name)
    for parameter in net.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    folder = Path(tempfile.mkdtemp())
    about = {"settings": {}, "preprocess": {}}
    metadata_of = partial(Metadata, Net(), ["a", "b"], net.preprocess)
    saver = Checkpoints(folder, 2, accelerator, net, optimizer, about, metadata_of)
    saver.keep_best({})
    state = State(zero_sums(accelerator.device))

    def save() -> None:
        state.step += 1
        saver.save(state)

    def plain() -> None:
        """Copy the same bytes, and write them to the disk."""
        weights = {key: value.clone() for key, value in net.model.state_dict().items()}
        momentum = {str(k): held["momentum_buffer"].clone() for k, held in enumerate(optimizer.state.values())}
        for name, held in {"model": weights, "optimizer": momentum, "best": weights}.items():
            save_file(held, folder / name)
            files.sync(folder / name)

    stalls, totals, bares = [], [], []
    for _ in range(7):
        began = time.perf_counter()
        save()
        stalls.append(time.perf_counter() - began)
        saver.finish()
        totals.append(time.perf_counter() - began)
        bares.append(seconds(plain, 1))
    stall, total, bare = median(stalls), median(totals), median(bares)
    size = sum(file.stat().st_size for file in max((folder / "checkpoints").iterdir()).iterdir())
    shutil.rmtree(folder)
    return (
        f"| a checkpoint of {model_name}, {size / 2**20:.0f} MiB, until training continues | {stall:.3f} s | copying "
        f"and writing the same bytes | {bare:.3f} s | {stall / bare:.2f} |\n"
        f"| the same, until it is complete on the disk | {total:.3f} s | the same | {bare:.3f} s | {total / bare:.2f} |"
    )


def agreement(model_name: str, results: str) -> None:
    """On two processes: the exchange of signals around the optimizer's step, against the whole step."""
    accelerator = Accelerator(cpu=True)
    net, optimizer = built(model_name, image_size=64)
    wrapped = devices.wrap(accelerator, net.model)
    interrupts = Interrupts(accelerator, 10**9, float("inf"))
    x, labels = torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)  # (N, C, H, W), (N,)
    waited, whole = [], []
    for _ in range(30):
        began = time.perf_counter()
        nn.functional.cross_entropy(wrapped(x), labels).backward()
        accelerator.wait_for_everyone()  # so that what follows waits for the exchange, not for a slower process
        before = time.perf_counter()
        interrupts.exchange()
        exchanged = time.perf_counter()
        optimizer.step()
        stepped = time.perf_counter()
        interrupts.checkpoint_due(1)
        end = time.perf_counter()
        waited.append(exchanged - before + end - stepped)
        whole.append(end - began)
    if accelerator.is_main_process:
        exchange, total = median(waited), median(whole)
        Path(results).write_text(
            f"| agreeing on signals, 2 processes | {exchange * 1e6:.0f} µs | a step of {model_name}, 2 × 4 images of "
            f"64 pixels | {total * 1e3:.0f} ms | {exchange / total:.2%} |"
        )


def seeding() -> str:
    """Seeding torch's generator for a sample against loading and augmenting it."""
    recipe = recipes.from_settings("finetune", {"workers": 0})
    preprocess = network.build(recipe, 10, empty=True).preprocess
    splits = readers.read(recipe.images, 3, 0).splits
    samples = make_loaders(splits, preprocess, recipe, Accelerator(cpu=True))["train"].dataset

    seed = seconds(lambda: samples._seeded(lambda: None, of=(3, 5)), 2000)
    whole = seconds(lambda: samples[Draw(0, 5, 1.0)], 300)
    return (
        f"| seeding a sample | {seed * 1e6:.0f} µs | loading and augmenting it, {preprocess.crop} pixels | "
        f"{whole * 1e6:.0f} µs | {seed / whole:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    model = parser.parse_args().model
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as results:
        debug_launcher(agreement, (model, results.name), num_processes=2)
        agreed = results.read()
    print("| what | takes | against | takes | ratio |\n| --- | --- | --- | --- | --- |")
    print(agreed, seeding(), checkpoints(model), sep="\n")


if __name__ == "__main__":
    main()
