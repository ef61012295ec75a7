"""The plan of a run: a table of its depths and a line for each other fact, printed before it starts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch.utils.data import DataLoader

from finetune import errors
from finetune.audit.brief import Brief, brief
from finetune.config.bounds import period
from finetune.config.settings import Recipe, Training
from finetune.data import crops
from finetune.data.sampler import smallest_micro_batch
from finetune.data.types import ImageSet
from finetune.features import head, policy
from finetune.features.policy import Caching
from finetune.models.network import Network
from finetune.recipes import depth_name
from finetune.reporting import memory, unused
from finetune.reporting.memory import Memory, advice, in_bytes
from finetune.reporting.terminal import duration
from finetune.runtime import devices
from finetune.training import schedule
from finetune.training.timing import Estimate


@dataclass(frozen=True)
class Row:
    """One depth of the network."""

    name: str
    modules: str
    parameters: int
    start: int | None
    """The epoch (from 0) at which it starts to be trained; None: frozen, or a head that is only solved."""
    solved: bool
    """Whether it is a head that is solved before the first epoch."""
    lr: float
    """Its peak; under `--lr auto`, the lowest that it may be."""
    weight_decay: float
    batchnorm: str
    """See `Network.batchnorm`."""

    def when(self, epochs: int) -> str:
        """When it is trained, in words, in a run of so many epochs."""
        if self.start is None or not epochs:
            return "solved" if self.solved else "frozen"
        words = "from the start" if self.start == 0 else f"from epoch {self.start + 1}"
        words += f", after the last ({epochs})" if self.start >= epochs else ""
        return f"solved, then {words}" if self.solved else words

    def is_trained(self, epochs: int) -> bool:
        """Whether it is solved, or trained in a run of so many epochs."""
        return self.solved or (self.start is not None and self.start < epochs)


@dataclass(frozen=True)
class Plan:
    """What is printed before a run, and what `--plan --json` prints."""

    title: str
    rows: list[Row]
    facts: dict[str, str]
    """The lines below the table, by name."""
    memory: Memory
    steps_per_epoch: int
    epochs: int
    caching: Caching = field(repr=False)
    leaked: dict[str, list[int]] = field(default_factory=dict)
    """See `brief.Brief`; on the main process alone."""


def make(
    recipe: Recipe,
    network: Network,
    imageset: ImageSet,
    loaders: dict[str, DataLoader],
    accelerator: Accelerator,
    precision: str,
    estimate: Estimate | None = None,
) -> Plan:
    """The plan of a run, with its times where they are estimated. The network is left in its first phase. Collective.

    Raises `UserError` where the network does not take images of this size, and for `--sync-bn` on a CPU.
    """
    if recipe.run.sync_bn:
        devices.check_sync_batchnorm(accelerator.device)
    caching = policy.decide(recipe, network, loaders, accelerator)
    training, processes, classes = recipe.training, accelerator.num_processes, len(imageset.classes)
    counts = {name: len(split.labels) for name, split in imageset.splits.items()}
    looked = brief(imageset) if accelerator.is_main_process else Brief({})
    micro_batch = -(-min(training.batch_size, counts["train"]) // (processes * training.loaded_micro_batches))
    shape = (micro_batch, recipe.net.in_channels, network.preprocess.crop, network.preprocess.crop)
    network.set_phase(epoch=training.epochs - 1)  # when most is trained
    need = memory.estimate(network.model, shape, classes, training.optimizer, accelerator.mixed_precision)
    network.set_phase(epoch=0)
    smallest = partial(smallest_micro_batch, counts["train"]) if network.trains_batchnorm() else None
    free = devices.free_memory(accelerator.device)
    cure = advice(need, free, training, processes, smallest)
    errors.set_memory_advice(cure)
    steps, in_folds = loaders["train"].batch_sampler.steps, recipe.images.folds is not None
    epochs = 0 if caching.head and network.trains_head_alone() else training.epochs
    table = rows(network, training, solved=caching.head is not None)
    trained = sum(row.parameters for row in table if row.is_trained(epochs))
    facts = {
        "images": ", ".join(f"{count} {name}" for name, count in counts.items())
        + (f"; fold {recipe.images.fold or 1} of {recipe.images.folds}, whose images are the test split" * in_folds)
        + (f"; {len(imageset.bad)} that do not decode are left out" if imageset.bad else "")
        + (f"; --exclude leaves out {imageset.excluded}" if recipe.images.exclude else "")
        + (f" and relabels {imageset.relabelled}" if imageset.relabelled else ""),
        "classes": f"{classes}: {errors.printable(errors.listed(imageset.classes, 6))}",
        **looked.lines,
        "parameters": f"{trained:,} trained of {sum(row.parameters for row in table):,}",
        "head": head.describe(recipe, counts["train"], caching.head.split)
        if caching.head
        else f"trained by gradient steps alone: {caching.why_no_solver}",
        **(_steps(training, steps, network, caching.head is not None) if epochs else {}),
        **(_crops(recipe, imageset, network) if epochs and recipe.images.augment != "none" else {}),
        **({"time": _time(estimate, training, epochs)} if estimate else {}),
        "arithmetic": _arithmetic(caching, network, counts),
        "precision": f"{precision}, {'channels-last' if recipe.run.channels_last else 'channels-first'}",
        "processes": f"{processes} on {accelerator.device.type}, each with {loaders['train'].num_workers} "
        "image workers",
        "memory": f"about {in_bytes(need.total)} per process at the peak of a step, "
        f"{in_bytes(need.activations)} of it activations; {in_bytes(free)} are free"
        + (f". That is too little{_cure(training, cure)}" if need.total > free else ""),
        "checkpoints": f"at each epoch's end (in at most a tenth of the time){_period(recipe.run.checkpoint_every)}; "
        f"the newest {recipe.run.keep_checkpoints} are kept",
        "cached": policy.describe_activations(caching, counts),
        "decoded": policy.describe_decoded(caching),
    }
    if idle := unused.describe(recipe, len(network.stages), caching.head is not None, epochs > 0):
        facts["no effect"] = idle
    if "test" in counts and (missing := imageset.lacking("test")):
        facts["warning"] = (
            f"no image of the test split is {errors.listed(missing)}: "
            f"the test accuracy says nothing about {len(missing)} of {classes} classes"
        )
    if any(row.batchnorm in ("weights", "trained") for row in table):
        kept = "weights trained, statistics kept" if network.keep_batchnorm else "statistics of each batch"
        facts["BatchNorm"] = f"{kept}: {network.batchnorm_reason}"
    if smallest and processes * training.loaded_micro_batches > 1:
        largest = loaders["train"].batch_sampler.largest
        facts["BatchNorm"] += f"; {_batchnorm(training, processes, smallest, largest, recipe.run.sync_bn)}"
    side, fit = network.preprocess.crop, network.preprocess.fit
    title = f"{recipe.recipe}: {recipe.net.model}, weights {recipe.net.weights}, {side} × {side} pixels"
    title += "" if fit == "crop" else f" (--fit {fit})"
    return Plan(title, table, facts, need, steps, epochs, caching, looked.leaked)


def rows(network: Network, training: Training, solved: bool) -> list[Row]:
    """The table's rows, stem first; `solved` says whether the head is."""
    head, only_solved = len(network.stages) - 1, solved and network.trains_head_alone()
    depths = network.depths()
    sizes = [0] * len(network.stages)
    for name, parameter in network.model.named_parameters():
        sizes[depths[name]] += parameter.numel()
    table = []
    for depth, (paths, rate) in enumerate(zip(network.stages, network.rates, strict=True)):
        table.append(
            Row(
                name=depth_name(depth, len(network.stages)),
                modules=paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}",
                parameters=sizes[depth],
                start=rate.start if rate and not only_solved else None,
                solved=solved and depth == head,
                lr=schedule.peak_rate(training.lr) * rate.lr_scale if rate and not only_solved else 0.0,
                weight_decay=training.weight_decay if rate and not only_solved else 0.0,
                batchnorm=network.batchnorm(depth),
            )
        )
    return table


# ---- words -----------------------------------------------------------------------------------------------------------
def _steps(training: Training, steps: int, network: Network, solved: bool) -> dict[str, str]:
    return {
        "steps": f"{training.epochs} epochs × {steps} = {training.epochs * steps}, each of {training.batch_size} images"
        + (f" in {training.accumulate} micro-batches" if training.loaded_micro_batches > 1 else "")
        + (", in twice the micro-batches whenever memory runs out" if training.accumulate == "auto" else ""),
        "optimizer": f"{training.optimizer}, {training.schedule} schedule, "
        + (f"{training.warmup:.0%} warm-up, " if training.warmup else "no warm-up, ")
        + (f"gradients clipped at {training.clip_norm:g}" if training.clip_norm else "no clipping")
        + (_unsure_rate(network) if training.lr == "auto" and solved and not training.l2 else ""),
    }


def _crops(recipe: Recipe, imageset: ImageSet, network: Network) -> dict[str, str]:
    return {"random crops": crops.describe(recipe.images, imageset.splits["train"], network.preprocess)}


def _unsure_rate(network: Network) -> str:
    factor = schedule.AUTO_HIGHEST / schedule.AUTO_LOWEST
    loss = schedule.AUTO_LOWEST / schedule.rate_per_nat(network.is_normalised())
    return f"; up to {factor:g} times the rates above if the solved head's held-out loss is above {loss:.2g}"


def _cure(training: Training, advice: str) -> str:
    return " for one micro-batch: expect more" if training.accumulate == "auto" else f". {advice}"


def _time(estimate: Estimate, training: Training, epochs: int) -> str:
    """How long the parts of the run take, and what its budget is."""
    parts = [f"{duration(estimate.head)} for the head"] if estimate.head else []
    if epochs:
        parts.append(f"{duration(estimate.epoch)} for each of {epochs} epoch{'s' * (epochs > 1)}")
    total = estimate.head + epochs * estimate.epoch + estimate.end
    budget = ""
    if training.minutes:
        left = "" if epochs else "; no epoch fits: the head is the result"
        budget = f"; the budget is {duration(60 * training.minutes)} (--minutes){left}"
    return f"about {', '.join(parts)}; {duration(total)} in all, less where activations are cached{budget}"


def _arithmetic(caching: Caching, network: Network, counts: dict[str, int]) -> str:
    # Without a split it is not known how much of the frozen part needs no backward pass.
    frozen = network.frozen_epochs()
    is_bound = any(not phase.split and phase.epochs.start < frozen for phase in caching.phases)
    _, total, _ = policy.arithmetic(caching.all_phases, counts, caching.flops)
    empty = " with an empty cache" if any(phase.cached for phase in caching.all_phases) else ""
    about = "at most" if is_bound else "about"
    return f"{about} {in_flops(total)} in all{empty}; {in_flops(caching.flops)} per forward pass of an image"


def _period(checkpoint_every: str) -> str:
    steps, seconds = period(checkpoint_every)
    if steps < sys.maxsize:
        return f" and every {steps} steps"
    return f" and every {seconds / 60:g} minutes" if math.isfinite(seconds) else ""


def _batchnorm(
    training: Training, processes: int, smallest: Callable[[int, int], int], largest: int, sync_bn: bool
) -> str:
    """Over which images BatchNorm takes its statistics where they are not the whole global batch."""
    micro_batches = processes * training.loaded_micro_batches
    low, high = smallest(training.batch_size, micro_batches), -(-largest // micro_batches)
    over = f"over {low if low == high else f'{low} to {high}'} images"
    if sync_bn and training.loaded_micro_batches == 1:
        return "statistics over all processes' images (--sync-bn): as on one process"
    if sync_bn:
        return "statistics over all processes' images of a micro-batch: the result differs from --accumulate 1"
    if training.loaded_micro_batches == 1:
        return f"statistics of each process's own images, {over}: the result differs from one process's"
    return f"statistics of each micro-batch, {over}: the result differs from --accumulate 1 on one process"


def as_json(plan: Plan) -> str:
    """The plan as JSON; memory in bytes, epochs counted from 0, null for frozen."""
    content: dict[str, Any] = {name: value for name, value in vars(plan).items() if name != "caching"}
    content |= {"rows": [asdict(row) for row in plan.rows], "memory": asdict(plan.memory)}
    return json.dumps(content | {"total_memory": plan.memory.total}, indent=2)


def show(plan: Plan) -> Group:
    """The plan as a rich renderable: the table, and below it one line per fact."""
    grid = Table(
        title=plan.title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False
    )
    for name in ("depth", "modules", "parameters", "trained", "lr", "decay", "BatchNorm"):
        width = 8 if name == "modules" else {"parameters": 11, "trained": 14, "lr": 8}.get(name, len(name))
        right = name in ("parameters", "lr", "decay")
        grid.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=width)
    for row in plan.rows:
        numbers = ("", "") if row.start is None else (f"{row.lr:.3g}", f"{row.weight_decay:.3g}")
        style = "" if row.is_trained(plan.epochs) else "dim"
        cells = (row.when(plan.epochs), *numbers)
        grid.add_row(row.name, row.modules, f"{row.parameters:,}", *cells, row.batchnorm, style=style)
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(style="bold", no_wrap=True)
    notes.add_column(overflow="fold")
    for name, value in plan.facts.items():
        notes.add_row(name, Text(value))
    return Group(grid, Text(), notes)


def in_flops(count: int) -> str:
    """Floating-point operations as GFLOP, TFLOP or PFLOP."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"
