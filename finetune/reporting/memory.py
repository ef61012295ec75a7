"""The memory of a training step: an estimate, and which setting to lower where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.config.settings import Training
from finetune.models import gradient_checkpointing, trial_run


@dataclass(frozen=True)
class Memory:
    """Estimated bytes per process at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate(model: nn.Module, shape: tuple[int, ...], classes: int, optimizer: str, precision: str) -> Memory:
    """Estimate the bytes of a step on images of this shape (N, C, H, W), for the gradients that are asked for now.

    The forward pass runs on the meta device, where tensors have shapes but no values. The activations are the distinct
    tensors that autograd saves for the backward pass, and at each layer also its input and output: in a frozen part,
    which saves nothing, these are all. Blocks with gradient checkpointing save their inputs, and
    one of them at a time its activations. Raises `UserError` where the network does not take such images.
    """
    dtype = torch.float32 if precision == "no" else {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    tensors = trial_run.tensors(model, dtype)
    held = {tensor.untyped_storage() for tensor in tensors.values()}
    saved: set[torch.UntypedStorage] = set()
    computed_again: list[set[torch.UntypedStorage]] = []  # of the block that is running, if any
    activations = 0

    def save(tensor: Tensor) -> Tensor:
        (computed_again[-1] if computed_again else saved).add(tensor.untyped_storage())
        return tensor

    def at_layer(_: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal activations
        alive = saved.union(*computed_again, _storages(*inputs, output))
        activations = max(activations, sum(storage.nbytes() for storage in alive - held))

    def enter_block(_: nn.Module, inputs: tuple) -> None:
        saved.update(_storages(*inputs))
        computed_again.append(set())

    def leave_block(*_: object) -> None:
        computed_again.pop()

    layers = [module for module in model.modules() if not any(module.children())]
    blocks = [module for module in model.modules() if gradient_checkpointing.is_enabled(module)]
    hooks = [layer.register_forward_hook(at_layer) for layer in layers]
    hooks += [block.register_forward_pre_hook(enter_block) for block in blocks]
    hooks += [block.register_forward_hook(leave_block) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            outputs = trial_run.outputs(model, tensors, shape, dtype)
    finally:
        for hook in hooks:
            hook.remove()
    logits = outputs if isinstance(outputs, Tensor) else outputs[0]
    assert logits.shape == (shape[0], classes), f"the network gives {tuple(logits.shape)}"
    activations = max(activations, sum(storage.nbytes() for storage in saved - held))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(weights, gradients, gradients * (1 if optimizer == "sgd" else 2), activations)


def _storages(*values: object) -> set[torch.UntypedStorage]:
    """The storages of tensors, and of those in lists."""
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item.untyped_storage() for item in flat if isinstance(item, Tensor)}


def advice(
    need: Memory, free: int, training: Training, processes: int = 1, smallest: Callable[[int, int], int] | None = None
) -> str:
    """Which setting to lower, and to what, when a step does not fit into `free` bytes.

    Where BatchNorm is trained, `smallest` gives the images in the smallest micro-batch for a batch size and a number of
    micro-batches: no advice leaves fewer than two.
    """
    now = f"A step was estimated to need {in_bytes(need.total)} per process, {in_bytes(free)} were free. "
    if training.accumulate == "auto":
        return f"{now}In evaluation take a smaller --eval-batch-size, elsewhere a smaller --model or --image-size."
    room, batch_size, accumulate = (
        0.9 * free - (need.total - need.activations),
        training.batch_size,
        training.accumulate,
    )
    wanted = accumulate
    while room > 0 and wanted < batch_size and need.activations * accumulate > room * wanted:
        wanted *= 2
    if room <= 0 or need.activations * accumulate > room * wanted:
        return f"{now}Take a smaller --model or --image-size."
    if wanted == accumulate:
        wanted, now = 2 * wanted, now + "It took more, or other programs did. "
    more, size = min(wanted, batch_size), max(1, batch_size * accumulate // wanted)
    effect = "the result stays the same"
    if smallest:
        effect = "BatchNorm then takes its statistics of fewer images, and the result changes"
        more = more if smallest(batch_size, more * processes) >= 2 else 0
        size = next((k for k in range(size, 0, -1) if smallest(k, accumulate * processes) >= 2), 0)
    ways = [f"--accumulate {more} ({effect})"] if more else []
    ways += [f"--batch-size {size}"] if size else []
    if not ways:
        return f"{now}Take a smaller --model or --image-size."
    return f"{now}Use {' or '.join(ways)}; in evaluation, a smaller --eval-batch-size."


def in_bytes(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"
