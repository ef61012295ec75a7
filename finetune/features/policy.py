"""What a run caches: activations of the network's frozen part, and decoded images. Decided before training."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.data import decoded_cache, tensor_cache
from finetune.errors import UserError
from finetune.features import graph_split, head
from finetune.models.network import Network
from finetune.runtime import devices

OFTEN = 3  # reads of an image from which caching it decoded is faster than decoding it again
DECODED_LIMIT = 4_000_000_000  # bytes of decoded images without `--cache-gb`, since home folders have quotas


@dataclass(frozen=True)
class Phase:
    """Epochs in which the same depths are frozen, and what they cache."""

    epochs: range
    split: graph_split.Split | None
    """Where the network is split; None where it cannot be."""
    cached: tuple[str, ...]
    """The data splits, of `val` and `train`, whose activations are cached."""
    views: int
    """Different views of each training image in these epochs; 0 where nothing is trained."""
    size: int
    """Estimated bytes of the activations."""
    why_not: str
    """The reason why training images, or all images, are not cached."""

    def reads(self, name: str) -> int:
        """How often each image of a data split is read in these epochs, or before the first to solve the head."""
        if name == "train" and not self.views:
            return 0
        if name not in self.cached:
            return len(self.epochs) or (self.views if name == "train" else 0)
        return self.views if name == "train" else 1


@dataclass(frozen=True)
class Caching:
    """What a run caches."""

    phases: list[Phase]
    """In the epochs' order."""
    decoded: dict[str, int]
    """The data splits whose decoded images are cached, with their estimated bytes."""
    why_not: str
    """The reason why the other splits' are not."""
    limit: int
    """The size limit of the cache folder, in bytes."""
    folder: Path
    flops: int
    """Floating-point operations of the whole network's forward pass for one image."""
    head: Phase | None = None
    """The phase before the first epoch, in which the head is solved."""
    why_no_solver: str = ""
    """The reason why it is not."""

    @property
    def all_phases(self) -> list[Phase]:
        """The phases, and before them the one in which the head is solved."""
        return [self.head, *self.phases] if self.head else self.phases

    def phase(self, epoch: int) -> Phase:
        """The phase of an epoch."""
        return next(phase for phase in self.phases if epoch in phase.epochs)


def decide(recipe: Recipe, network: Network, loaders: dict[str, DataLoader], accelerator: Accelerator) -> Caching:
    """What to cache in each phase of training; the same on all processes. Collective.

    The network may be on the meta device. It is left in its first phase. Raises `UserError` where a new head would be
    neither trained nor solved, and where `--minutes` leaves no epoch and no head is solved.
    """
    folder = tensor_cache.folder(recipe.run.cache_dir)
    if not tensor_cache.usable(folder):
        if recipe.run.cache_dir and not tensor_cache.readable(folder):  # one that is only read-only costs no run
            raise UserError(f"--cache-dir {folder} cannot be read, written or made. Name another, or leave it out.")
        if accelerator.is_main_process:
            print(f"{folder} cannot be read, written or made: nothing is cached.", file=sys.stderr)
    limit = devices.from_main(accelerator, lambda: tensor_cache.limit(folder, recipe.run.cache_gb))
    epochs, precision = recipe.training.epochs, accelerator.mixed_precision
    images = len(loaders["train"].dataset.split.whole.labels)
    free = devices.from_main(accelerator, lambda: devices.free_memory(accelerator.device))
    splitter = graph_split.Splitter(network)
    split, why_no_solver = head.decide(recipe, splitter, images, free)
    if split is None and network.rates[-1] is None:
        raise UserError(
            f"the head is new, and would stay random: it is neither trained nor solved ({why_no_solver}). Add head to "
            f"--train-depths."
        )
    if split is None and not epochs:
        raise UserError(
            f"--minutes {recipe.training.minutes:g} leaves no time for an epoch, and the head cannot be solved "
            f"({why_no_solver}). Give more minutes."
        )
    solved = _solved(split, recipe, images, limit) if split else None
    if solved and (network.trains_head_alone() or not epochs):
        phases = [_phase(range(1), recipe, splitter, loaders, limit, precision, trained=False)]
    else:
        starts = network.phase_starts(epochs)
        phases = [
            _phase(range(start, stop), recipe, splitter, loaders, limit, precision)
            for start, stop in zip(starts, [*starts[1:], epochs], strict=True)
        ]
    network.set_phase(epoch=0)
    caching = Caching(phases, {}, "", limit, folder, splitter.flops, solved, why_no_solver)
    decoded, why_not = devices.from_main(accelerator, lambda: _decoded(recipe, caching.all_phases, loaders, limit))
    return replace(caching, decoded=decoded, why_not=why_not)


def _solved(split: graph_split.Split, recipe: Recipe, images: int, limit: int) -> Phase:
    """The phase in which the head is solved, on features (d,) of each image in each view."""
    views = head.views(recipe)
    size = images * views * split.shape[0] * 4
    return Phase(
        range(0), split, ("train",) if size <= limit else (), views, size, "" if size <= limit else "--cache-gb"
    )


def _phase(
    epochs: range,
    recipe: Recipe,
    splitter: graph_split.Splitter,
    loaders: dict[str, DataLoader],
    limit: int,
    precision: str,
    trained: bool = True,
) -> Phase:
    """The phase of some epochs; without `trained`, one that only evaluates."""
    network, sampler, images = splitter.network, loaders["train"].batch_sampler, recipe.images
    frozen = epochs.start < network.frozen_epochs()
    network.set_phase(epochs.start)
    split = splitter.find() if frozen and limit else None
    views = len({sampler.view(epoch) for epoch in epochs}) if trained else 0
    changing = "images are mixed anew in each epoch" if images.mixup or images.cutmix else ""
    changing = changing or ("" if sampler.views.number or not trained else "each epoch draws fresh augmentations")
    if split is None:
        reason = "all depths are trained" if not frozen else "the first layers are trained" if limit else "--cache-gb 0"
        return Phase(epochs, None, (), views, 0, reason)
    cached, size, why_not = (), 0, changing
    bytes_per_image = split.values * (4 if precision == "no" else 2)
    rows = {"val": len(loaders["val"].dataset.split.whole.labels)}
    if not changing and trained:
        rows["train"] = len(loaders["train"].dataset) * views
    for name, count in rows.items():
        if size + count * bytes_per_image <= limit:
            cached, size = (*cached, name), size + count * bytes_per_image
        else:
            why_not = f"{count * bytes_per_image / 1e9:.3g} GB more would not fit: --cache-gb"
    return Phase(epochs, split, cached, views, size, why_not)


def _decoded(
    recipe: Recipe, phases: list[Phase], loaders: dict[str, DataLoader], limit: int
) -> tuple[dict[str, int], str]:
    """The data splits whose decoded images are cached, with their bytes, and why the others' are not."""
    if not recipe.images.cache_images:
        return {}, "--no-cache-images"
    splits = {name: loaders[name].dataset for name in ("train", "val")}
    if not all(isinstance(samples.split.items, list) for samples in splits.values()):
        return {}, "they are not files"
    room = limit - sum(phase.size for phase in phases)
    room = room if recipe.run.cache_gb is not None else min(room, DECODED_LIMIT)
    # Decoded images are many times larger than their files: beyond the page cache, reading them is slower.
    room = min(room, devices.free_memory(torch.device("cpu")) // 4)
    found, why_not = {}, ""
    for name, samples in splits.items():
        times = sum(phase.reads(name) for phase in phases)
        if times < OFTEN:
            why_not = why_not or f"{name}: decoded {('never', 'once only', 'twice only')[times]}"
        elif (size := decoded_cache.estimate(samples)) > room:
            why_not = why_not or f"{name}: {size / 1e9:.3g} GB would not fit: --cache-gb, or a quarter of the memory"
        else:
            found[name] = size
            room -= size
    return found, why_not


def describe_decoded(caching: Caching) -> str:
    """The plan's line about decoded images."""
    if not caching.decoded:
        return f"not cached ({caching.why_not})"
    size = sum(caching.decoded.values()) / 2**20
    reason = f" ({caching.why_not})" if caching.why_not else ""
    return f"{' and '.join(caching.decoded)} cached: about {size:.3g} MiB{reason}"


def describe_activations(caching: Caching, counts: dict[str, int]) -> str:
    """The plan's lines about activations: what is cached, its size, and the arithmetic saved.

    `counts` are images per data split.
    """
    lines, phases = [], caching.all_phases
    for phase in phases:
        first, last = phase.epochs.start + 1, phase.epochs.stop
        when = f"epoch {first}: " if first == last else f"epochs {first} to {last}: "
        when = "head: " if phase is caching.head else "evaluation: " if not phase.views else when
        when = when if len(phases) > 1 else ""
        if not phase.cached:
            lines.append(f"{when}nothing ({phase.why_not})")
            continue
        images = [f"{counts[name]} {name}" for name in ("val", "train") if name in phase.cached]
        what = ", ".join(images) + (f" in {phase.views} views" if "train" in phase.cached and phase.views > 1 else "")
        missing = f" (not of train: {phase.why_not})" if phase.why_not else ""
        size = f"{phase.size / 2**20:.3g} MiB"
        lines.append(f"{when}output of {phase.split.module} for {what}{missing}: {size}")
    if not any(phase.cached for phase in phases):
        return "; ".join(lines)
    if not any(phase.cached and phase.views for phase in caching.phases):
        return f"{'; '.join(lines)}, in {caching.folder}"
    without, first, later = arithmetic(phases, counts, caching.flops)
    saved = (
        f"saves {1 - first / without:.0%} of the run's arithmetic, {1 - later / without:.0%} where it is cached already"
    )
    return f"{'; '.join(lines)}, in {caching.folder}\n{saved}"


def arithmetic(phases: list[Phase], counts: dict[str, int], flops: int) -> tuple[int, int, int]:
    """Floating-point operations of a run: without a cache, with an empty one, and with all activations cached.

    `flops` are those of the whole network's forward pass for one image. A backward pass counts as two forward passes.
    """
    without = first = later = 0
    for phase in phases:
        prefix = phase.split.prefix_flops if phase.split else 0
        suffix = flops - prefix
        counts = counts if phase.views else counts | {"train": 0}
        rest = len(phase.epochs) * (3 * suffix * counts["train"] + suffix * counts["val"])  # 0 of the solved head
        passes = {"train": len(phase.epochs) or phase.views, "val": len(phase.epochs)}
        every = {name: passes[name] * prefix * counts[name] for name in passes}
        once = {"train": phase.views * prefix * counts["train"], "val": prefix * counts["val"]}
        without += rest + sum(every.values())
        first += rest + sum((once if name in phase.cached else every)[name] for name in every)
        later += rest + sum(0 if name in phase.cached else every[name] for name in every)
    return without, first, later
