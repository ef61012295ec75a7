"""What safety costs: a checkpoint, agreeing on signals at every update, a seed for every sample.

    python -m benchmarks.overhead                          # model resnet50, 2 processes
    python -m benchmarks.overhead --model resnet18

Each is timed against the work beside it, in the same process: a checkpoint against copying and writing the same bytes,
the agreement against an update, the seeding against loading and augmenting an image. Medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import save_file
from torch import nn

from finetune import archs, checkpoint, durable, freezing, groups, signals, starter, surgery
from finetune.folders import read
from finetune.recipe import Net, Rate, Training
from finetune.samples import Draw, Samples, training_transform


def seconds(work: Callable[[], object], times: int) -> float:
    """The median time of one call."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def checkpoints(model_name: str) -> str:
    """Saving everything of a fine-tuning run with SGD against copying and writing the same tensors."""
    accelerator = Accelerator(cpu=True)
    model, _, stages = surgery.build(Net(model=model_name, weights="none"), 10)
    rates = [Rate(1.0)] * len(stages)
    optimizer = groups.make_optimizer(model, stages, rates, Training(), archs.find(model_name))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    place = Path(tempfile.mkdtemp())
    about = {"settings": {}, "preprocess": {}}
    frozen = freezing.unchanging(model, stages, rates)
    saver = checkpoint.Checkpoints(place / "checkpoints", 2, accelerator, model, optimizer, None, frozen, about)
    saver.keep_best()
    progress = checkpoint.Progress()

    def save() -> None:
        progress.done += 1
        saver.save(progress)

    def plain() -> None:
        """The same bytes, copied and written and on the disk."""
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        momentum = {str(k): held["momentum_buffer"].clone() for k, held in enumerate(optimizer.state.values())}
        for name, held in {"model": weights, "optimizer": momentum, "best": weights}.items():
            save_file(held, place / name)
            durable.sync(place / name)

    stalls, totals, bares = [], [], []
    for _ in range(7):
        began = time.perf_counter()
        save()
        stalls.append(time.perf_counter() - began)
        saver.finish()
        totals.append(time.perf_counter() - began)
        bares.append(seconds(plain, 1))
    stall, total, bare = median(stalls), median(totals), median(bares)
    size = sum(file.stat().st_size for file in max((place / "checkpoints").iterdir()).iterdir())
    shutil.rmtree(place)
    return (
        f"| a checkpoint of {model_name}, {size / 2**20:.0f} MiB, until training goes on | {stall:.3f} s | copying and "
        f"writing the same bytes | {bare:.3f} s | {stall / bare:.2f} |\n"
        f"| the same, until it is whole on the disk | {total:.3f} s | the same | {bare:.3f} s | {total / bare:.2f} |"
    )


def agreement(model_name: str, results: str) -> None:
    """On two processes: share and agree, around the optimizer's step, against the whole update."""
    accelerator = Accelerator(cpu=True)
    model, _, stages = surgery.build(Net(model=model_name, weights="none", image_size=64), 10)
    optimizer = groups.make_optimizer(model, stages, [Rate(1.0)] * len(stages), Training(), archs.find(model_name))
    wrapped = freezing.wrap(accelerator, model)
    requests = signals.Requests(accelerator, 10**9, float("inf"))
    x, labels = torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)
    waited, whole = [], []
    for _ in range(30):
        began = time.perf_counter()
        nn.functional.cross_entropy(wrapped(x), labels).backward()
        accelerator.wait_for_everyone()  # so that the wait below is the exchange's own, not for a slower process
        share = time.perf_counter()
        requests.share()
        shared = time.perf_counter()
        optimizer.step()
        agree = time.perf_counter()
        requests.agreed(1)
        end = time.perf_counter()
        waited.append(shared - share + end - agree)
        whole.append(end - began)
    if accelerator.is_main_process:
        part, total = median(waited), median(whole)
        Path(results).write_text(
            f"| agreeing on signals, 2 processes | {part * 1e6:.0f} µs | an update of {model_name}, 2 × 4 images of 64 "
            f"pixels | {total * 1e3:.0f} ms | {part / total:.2%} |"
        )


def seeding() -> str:
    """Seeding torch's generator for a sample against loading and augmenting it."""
    images = read(Path(starter.path("starter")).expanduser(), 0.2, 0, False)
    _, preprocess, _ = surgery.build(Net(model="shufflenet_v2_x0_5", weights="none", image_size=64), 10)
    samples = Samples(images.splits["train"], 3, training_transform(preprocess, "basic", 0.08), 0)

    part = seconds(lambda: samples._seeded(lambda: None, of=(3, 5)), 2000)
    whole = seconds(lambda: samples[Draw(0, 5, 1.0)], 300)
    return (
        f"| seeding a sample | {part * 1e6:.0f} µs | loading and augmenting it, {preprocess.crop} pixels | "
        f"{whole * 1e6:.0f} µs | {part / whole:.2%} |"
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
