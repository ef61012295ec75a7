"""What is kept so that it is not computed twice, decided before training: a frozen start's activations, and pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader

from finetune import freezing, frontier, hardware, pixels, store
from finetune.archs import Preprocess
from finetune.recipe import Rate, Recipe

OFTEN = 3  # times: an image that is needed less often is as quickly decoded again as kept
DECODED = 4_000_000_000  # bytes of decoded images, where nobody says how much may be kept: a home directory has quotas


@dataclass(frozen=True)
class Phase:
    """Epochs with the same frontier, and what is kept of it."""

    epochs: range
    cut: frontier.Cut | None
    splits: tuple[str, ...]
    """Of `val` and `train`, those whose activations are kept."""
    views: int
    """Different views of each training image in these epochs."""
    size: int
    """Estimated bytes of it."""
    why_not: str
    """Why nothing is kept of the training images, or nothing at all."""

    def reads(self, name: str) -> int:
        """How often each image of a split is read in these epochs."""
        if name not in self.splits:
            return len(self.epochs)
        return self.views if name == "train" else 1


@dataclass(frozen=True)
class Caches:
    """What a run keeps."""

    phases: list[Phase]
    """In the epochs' order."""
    decoded: dict[str, int]
    """Splits whose images are kept as they are decoded, with the estimated bytes of them."""
    why_not: str
    """Why those of no split are, or of one alone."""
    most: int
    """Bytes that the store may take."""


def decide(
    recipe: Recipe,
    model: nn.Module,
    stages: list[list[str]],
    rates: list[Rate | None],
    preprocess: Preprocess,
    loaders: dict[str, DataLoader],
    accelerator: Accelerator,
) -> Caches:
    """What is to be kept in each phase of a training. The same on all processes.

    The model, of which shapes are enough, is left as it is in the first epoch.
    """
    epochs, sampler, images = recipe.training.epochs, loaders["train"].batch_sampler, recipe.images
    shape = (recipe.net.in_channels, preprocess.crop, preprocess.crop)
    starts = sorted({0} | {rate.start for rate in rates if rate and rate.start < epochs})
    most, phases = limit(recipe, accelerator), []
    for start, stop in zip(starts, [*starts[1:], epochs], strict=True):
        freezing.set_phase(model, stages, rates, start)
        frozen = start < freezing.frozen_epochs(rates)
        cut = frontier.find(model, shape) if frozen and most else None
        views = len({sampler.view(epoch) for epoch in range(start, stop)})
        mixed = "images are mixed anew in each epoch" if images.mixup or images.cutmix else ""
        fresh = mixed or ("" if sampler.views else "each epoch draws fresh augmentations")
        splits, size, why_not = (), 0, fresh
        if cut is None:
            why_not = ("nothing that comes first is fixed" if most else "--cache-gb 0") if frozen else "all is trained"
        else:
            one = cut.values * (4 if accelerator.mixed_precision == "no" else 2)
            rows = {"val": len(loaders["val"].dataset)}
            if not fresh:
                rows["train"] = len(loaders["train"].dataset) * views
            for name, count in rows.items():
                if size + count * one <= most:
                    splits, size = (*splits, name), size + count * one
                else:
                    why_not = f"{count * one / 1e9:.3g} GB more would not fit: --cache-gb"
        phases.append(Phase(range(start, stop), cut, splits, views, size, why_not))
    freezing.set_phase(model, stages, rates, epoch=0)
    decoded = [_decoded(recipe, phases, loaders, most)]
    return Caches(phases, *(broadcast_object_list(decoded) if accelerator.num_processes > 1 else decoded)[0], most)


def _decoded(
    recipe: Recipe, phases: list[Phase], loaders: dict[str, DataLoader], most: int
) -> tuple[dict[str, int], str]:
    """Of which splits decoded images are kept, with their size, and why not of the others, as this process sees it."""
    if not recipe.images.cache_images:
        return {}, "--no-cache-images"
    splits = {name: loaders[name].dataset for name in ("train", "val")}
    if not all(isinstance(samples.split.items, list) for samples in splits.values()):
        return {}, "they are no files"
    room = most - sum(phase.size for phase in phases)
    room = room if recipe.run.cache_gb is not None else min(room, DECODED)
    # Where they do not stay in memory, each epoch reads many times as much from the disk as the files hold.
    room = min(room, hardware.free_memory(torch.device("cpu")) // 4)
    found, why_not = {}, ""
    for name, samples in splits.items():
        times = sum(phase.reads(name) for phase in phases)
        if times < OFTEN:
            why_not = why_not or f"{name}: decoded {'once' if times == 1 else 'twice'} only"
        elif (size := pixels.estimate(samples)) > room:
            why_not = why_not or f"{name}: {size / 1e9:.3g} GB would not fit: --cache-gb, or a quarter of the memory"
        else:
            found[name] = size
            room -= size
    return found, why_not


def describe_images(caches: Caches) -> str:
    """Whose decoded images are kept, in words."""
    if not caches.decoded:
        return f"not kept ({caches.why_not})"
    return f"kept of {' and '.join(caches.decoded)}: about {sum(caches.decoded.values()) / 2**20:.3g} MiB" + (
        f" ({caches.why_not})" if caches.why_not else ""
    )


def describe(phases: list[Phase], counts: dict[str, int], place: Path) -> str:
    """What is kept, how large it is and what it saves, in words; `counts` are images per split."""
    lines = []
    for phase in phases:
        first, last = phase.epochs.start + 1, phase.epochs.stop
        several = f"epoch {first}: " if first == last else f"epochs {first} to {last}: "
        several = several if len(phases) > 1 else ""
        if not phase.splits:
            lines.append(f"{several}nothing ({phase.why_not})")
            continue
        what = f"{counts['val']} val"
        if "train" in phase.splits:
            what += f", {counts['train']} train" + (f" in {phase.views} views" if phase.views > 1 else "")
        missing = f" (not of train: {phase.why_not})" if phase.why_not else ""
        lines.append(f"{several}what {phase.cut.place} gives of {what}{missing}: {phase.size / 2**20:.3g} MiB")
    if not any(phase.splits for phase in phases):
        return "; ".join(lines)
    cold, warm = savings(phases, counts)
    gain = f"saves {1 - 1 / cold:.0%} of the run's arithmetic, {1 - 1 / warm:.0%} where they are there already"
    return f"{'; '.join(lines)}, in {place}\n{gain}"


def savings(phases: list[Phase], counts: dict[str, int]) -> tuple[float, float]:
    """By what factor the arithmetic of a run falls: the first time, and when all activations are there already."""
    without, first, later = arithmetic(phases, counts, next(phase.cut for phase in phases if phase.cut).flops)
    return without / max(first, 1), without / max(later, 1)


def arithmetic(phases: list[Phase], counts: dict[str, int], flops: int) -> tuple[int, int, int]:
    """Floating-point operations of a run: with nothing kept, the first time, and when all activations are there.

    `flops` are those of the whole network for one image, forwards; a backward pass counts as two forward passes.
    """
    without = first = later = 0
    for phase in phases:
        prefix = phase.cut.prefix_flops if phase.cut else 0
        suffix = flops - prefix
        rest = len(phase.epochs) * (3 * suffix * counts["train"] + suffix * counts["val"])
        every = {name: len(phase.epochs) * prefix * counts[name] for name in ("train", "val")}
        once = {"train": phase.views * prefix * counts["train"], "val": prefix * counts["val"]}
        without += rest + sum(every.values())
        first += rest + sum((once if name in phase.splits else every)[name] for name in every)
        later += rest + sum(0 if name in phase.splits else every[name] for name in every)
    return without, first, later


def limit(recipe: Recipe, accelerator: Accelerator) -> int:
    """Bytes that the store may take, as the main process sees its disk."""
    most = [store.limit(folder(recipe.run.cache_dir), recipe.run.cache_gb)]
    return broadcast_object_list(most)[0] if accelerator.num_processes > 1 else most[0]


def folder(given: Path | None) -> Path:
    """`--cache-dir`, or its default."""
    return given.expanduser() if given else store.default_folder()
