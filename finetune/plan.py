"""What a run is going to do, as one table that is shown before it starts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import torch
from accelerate import Accelerator
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from finetune import cache, data, errors, freezing, hardware
from finetune.archs import Preprocess, depth_name, parameter_depths
from finetune.checks import period
from finetune.errors import UserError
from finetune.imagesets import ImageSet
from finetune.recipe import Rate, Recipe, Training


@dataclass(frozen=True)
class Row:
    """One depth of the network."""

    name: str
    modules: str
    parameters: int
    start: int | None
    """The epoch (from 0) at which it starts to be trained; None: frozen."""
    lr: float
    weight_decay: float
    batchnorm: str
    """`trained`, `kept` (evaluation mode, statistics unchanged) or empty where there is none."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes per process at the peak of an update."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Plan:
    """What is printed, and what `--plan --json` gives."""

    title: str
    rows: list[Row]
    facts: dict[str, str]
    """What stands beneath the table, in words."""
    memory: Memory
    updates_per_epoch: int
    epochs: int


def rows(
    model: nn.Module, stages: list[list[str]], rates: list[Rate | None], lr: float, weight_decay: float
) -> list[Row]:
    """The table's rows, stem first."""
    depths = parameter_depths(model, stages)
    sizes = [0] * len(stages)
    for name, parameter in model.named_parameters():
        sizes[depths[name]] += parameter.numel()
    table = []
    for depth, (paths, rate) in enumerate(zip(stages, rates, strict=True)):
        table.append(
            Row(
                name=depth_name(depth, len(stages)),
                modules=paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}",
                parameters=sizes[depth],
                start=rate.start if rate else None,
                lr=lr * rate.scale if rate else 0.0,
                weight_decay=weight_decay if rate else 0.0,
                batchnorm=("trained" if rate else "kept") if freezing.has_batchnorm(model, paths) else "",
            )
        )
    return table


def memory(model: nn.Module, shape: tuple[int, ...], classes: int, optimizer: str, precision: str) -> Memory:
    """Estimate the bytes of an update on images of this shape (N, C, H, W), for the gradients now asked for.

    The forward pass runs on the meta device, where tensors have shapes but no values; the activations are the distinct
    tensors that autograd keeps for the backward pass. Doubles as the test that the net takes such images,
    with a `UserError` where it does not.
    """
    dtype = torch.float32 if precision == "no" else {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    held = {
        name: torch.empty_like(
            tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None
        ).requires_grad_(tensor.requires_grad)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    images = torch.empty(shape, device="meta", dtype=dtype)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = functional_call(model, held, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        why = str(error).splitlines()[0]
        if "more than 1 value per channel" in why:
            raise UserError("--batch-size: BatchNorm needs two images per process and part to train on.") from error
        raise UserError(f"--image-size {shape[-1]}: this net does not take it ({why}).") from error
    logits = outputs if isinstance(outputs, Tensor) else outputs[0]
    assert logits.shape == (shape[0], classes), f"the net gives {tuple(logits.shape)}"
    of_model = {tensor.untyped_storage()._cdata for tensor in held.values()}
    activations = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in of_model)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(weights, gradients, gradients * (1 if optimizer == "sgd" else 2), activations)


def make(
    recipe: Recipe,
    model: nn.Module,
    stages: list[list[str]],
    rates: list[Rate | None],
    preprocess: Preprocess,
    imageset: ImageSet,
    loaders: dict[str, DataLoader],
    accelerator: Accelerator,
    precision: str,
) -> tuple[Plan, cache.Caches]:
    """The plan of a run, and what it keeps so that it is computed once. The model is left as in the first epoch."""
    caches = cache.decide(recipe, model, stages, rates, preprocess, loaders, accelerator)
    net, training = recipe.net, recipe.training
    workers, updates_per_epoch = loaders["train"].num_workers, loaders["train"].batch_sampler.updates
    processes, classes = accelerator.num_processes, len(imageset.classes)
    counts = {name: len(split.labels) for name, split in imageset.splits.items()}
    table = rows(model, stages, rates, training.lr, training.weight_decay)
    names = ", ".join(imageset.classes[:6]) + (", …" if classes > 6 else "")
    trained = sum(row.parameters for row in table if row.start is not None)
    parts = processes * training.accumulate
    share = -(-min(training.batch_size, counts["train"]) // parts)
    shape = (share, net.in_channels, preprocess.crop, preprocess.crop)
    freezing.set_phase(model, stages, rates, epoch=training.epochs - 1)  # when most is trained
    known = next((phase.cut for phase in caches.phases if phase.cut), None)
    with nullcontext() if known else FlopCounterMode(display=False) as counter:
        need = memory(model, shape, classes, training.optimizer, accelerator.mixed_precision)
    flops = known.flops if known else counter.get_total_flops() // share
    # Without a cut it is not known what of the frozen part is spared the backward pass.
    at_most = any(not phase.cut and phase.epochs.start < freezing.frozen_epochs(rates) for phase in caches.phases)
    _, arithmetic, _ = cache.arithmetic(caches.phases, counts, flops)
    freezing.set_phase(model, stages, rates, epoch=0)
    free = hardware.free_memory(accelerator.device)
    batchnorm = freezing.trains_batchnorm(model, stages, rates)
    fewest = partial(data.fewest, counts["train"]) if batchnorm else None
    told = advice(need, free, training, processes, fewest)
    updates, seconds = period(recipe.run.checkpoint_every)
    every = f" and every {updates} updates" if updates < sys.maxsize else ""
    every = f" and every {seconds / 60:g} minutes" if math.isfinite(seconds) else every
    left_out = f"; {imageset.skipped} that do not decode are left out" if imageset.skipped else ""
    facts = {
        "images": ", ".join(f"{count} {name}" for name, count in counts.items()) + left_out,
        "classes": f"{classes}: {names}",
        "parameters": f"{trained:,} trained of {sum(row.parameters for row in table):,}",
        "updates": f"{training.epochs} epochs × {updates_per_epoch} = {training.epochs * updates_per_epoch}, "
        f"each of {training.batch_size} images"
        + (f" in {training.accumulate} parts" if training.accumulate > 1 else ""),
        "arithmetic": f"{'at most' if at_most else 'about'} {in_flops(arithmetic)} in all"
        + (" where nothing is kept yet" if any(phase.splits for phase in caches.phases) else "")
        + f"; {in_flops(flops)} per image forwards",
        "optimizer": f"{training.optimizer}, {training.schedule} schedule, {training.warmup:.0%} warm-up, "
        + (f"gradients clipped at {training.clip_norm:g}" if training.clip_norm else "no clipping"),
        "precision": f"{precision}, {'channels-last' if recipe.run.channels_last else 'channels-first'}",
        "processes": f"{processes} on {accelerator.device.type}, each with {workers} workers for images",
        "memory": f"about {in_words(need.total)} per process at the peak of an update, "
        f"{in_words(need.activations)} of it activations; {in_words(free)} are free"
        + (f". That is too little. {told}" if need.total > free else ""),
        "checkpoints": f"at each epoch's end (in at most a tenth of the time){every}; "
        f"the newest {recipe.run.keep_checkpoints} are kept",
        "cached": cache.describe(caches.phases, counts, cache.folder(recipe.run.cache_dir)),
        "decoded": cache.describe_images(caches),
    }
    if "test" in imageset.splits and (missing := imageset.lacking("test")):
        facts["warning"] = (
            f"no image of the test split is {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}: "
            f"the test accuracy says nothing of {len(missing)} of {classes} classes"
        )
    if batchnorm and parts > 1:
        low, high = fewest(training.batch_size, parts), -(-loaders["train"].batch_sampler.largest // parts)
        over = f"over {low if low == high else f'{low} to {high}'} images"
        if recipe.run.sync_bn:
            own = "statistics are taken over all processes' images (--sync-bn)"
            own += (
                ": as on one process"
                if training.accumulate == 1
                else " of one part: not what --accumulate 1 would train"
            )
        elif training.accumulate == 1:
            own = f"statistics are each process's own, {over}: not what one process would train"
        else:
            own = f"statistics are each part's own, {over}: not what --accumulate 1 on one process would train"
        facts["BatchNorm"] = own
    errors.when_memory_runs_out(told)
    title = f"{recipe.recipe}: {net.model}, weights {net.weights}, {preprocess.crop} × {preprocess.crop} pixels"
    return Plan(title, table, facts, need, updates_per_epoch, training.epochs), caches


def advice(
    need: Memory, free: int, training: Training, processes: int = 1, fewest: Callable[[int, int], int] | None = None
) -> str:
    """Which setting to lower, and to what, when an update does not fit into so many free bytes.

    Where BatchNorm is trained, `fewest` tells how many images a batch size and a number of parts leave in the smallest
    micro-batch: with less than two it is no advice.
    """
    room, parts = 0.9 * free - (need.total - need.activations), training.accumulate
    now = f"An update was estimated to need {in_words(need.total)} per process, {in_words(free)} were free. "
    while room > 0 and parts < training.batch_size and need.activations * training.accumulate > room * parts:
        parts *= 2
    if room <= 0 or need.activations * training.accumulate > room * parts:
        return f"{now}Take a smaller --model or --image-size."
    if parts == training.accumulate:
        parts, now = 2 * parts, now + "It took more, or other programs did. "
    accumulate, size = min(parts, training.batch_size), max(1, training.batch_size * training.accumulate // parts)
    same = "the result stays the same"
    if fewest:
        same = "BatchNorm then takes its statistics of fewer images, and the result changes"
        accumulate = accumulate if fewest(training.batch_size, accumulate * processes) >= 2 else 0
        fitting = (k for k in range(size, 0, -1) if fewest(k, training.accumulate * processes) >= 2)
        size = next(fitting, 0)
    ways = [f"--accumulate {accumulate} ({same})"] if accumulate else []
    ways += [f"--batch-size {size}"] if size else []
    if not ways:
        return f"{now}Take a smaller --model or --image-size."
    return f"{now}Use {' or '.join(ways)}; in evaluation, a smaller --eval-batch-size."


def as_json(plan: Plan) -> str:
    """The plan for machines; bytes for memory, epochs counted from 0, null for what is frozen."""
    return json.dumps(asdict(plan) | {"total_memory": plan.memory.total}, indent=2)


def show(plan: Plan) -> Group:
    """The plan as a rich renderable: the table, and beneath it one line per fact."""
    grid = Table(
        title=plan.title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for name in ("depth", "modules", "parameters", "trained", "lr", "decay", "BatchNorm"):
        least = 8 if name == "modules" else {"parameters": 11, "trained": 14, "lr": 8}.get(name, len(name))
        right = name in ("parameters", "lr", "decay")
        grid.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=least)
    for row in plan.rows:
        if row.start is None:
            cells, style = ("frozen", "", ""), "dim"
        else:
            when = "from the start" if row.start == 0 else f"from epoch {row.start + 1}"
            never = row.start >= plan.epochs
            when += f", after the last ({plan.epochs})" if never else ""
            cells, style = (when, f"{row.lr:.3g}", f"{row.weight_decay:.3g}"), "dim" if never else ""
        grid.add_row(row.name, row.modules, f"{row.parameters:,}", *cells, row.batchnorm, style=style)
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(style="bold", no_wrap=True)
    notes.add_column(overflow="fold")
    for name, value in plan.facts.items():
        notes.add_row(name, Text(value))
    return Group(grid, Text(), notes)


def in_words(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def in_flops(count: int) -> str:
    """Floating-point operations as GFLOP, TFLOP or PFLOP."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"
