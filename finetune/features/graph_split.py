"""Split a network, of any architecture, where its frozen part ends: on its torch.fx graph.

The prefix, up to the split, computes the same in every epoch. The suffix, behind it, is trained.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from finetune.models import gradient_checkpointing, trial_run
from finetune.models.network import Network
from finetune.training.dropout import DROPPING

RANDOM = (*DROPPING, nn.AlphaDropout, nn.FeatureAlphaDropout)
PROBE = 11  # images of the trial run on the meta device: a first axis of this length is the batch


@dataclass(frozen=True)
class Split:
    """A network in two parts, split at a point where exactly one tensor is live."""

    training: fx.Graph
    """The whole network in this phase's training mode."""
    evaluation: fx.Graph
    """The whole network in evaluation mode. Both graphs begin with the same nodes."""
    nodes: int
    """The number of these nodes: the prefix."""
    module: str
    """The module, or the operation in it, whose output is the tensor."""
    shape: tuple[int, ...]
    """The tensor's, without the batch axis."""
    prefix_flops: int
    """Floating-point operations of the prefix's forward pass for one image."""

    @property
    def values(self) -> int:
        """Numbers in one image's tensor."""
        return math.prod(self.shape)

    def prefix(self, model: nn.Module, pooled: bool = False) -> fx.GraphModule:
        """Images (N, C, H, W) → the tensor (N, *shape). Shares modules and parameters with the model.

        With `pooled`, a map (N, d, h, w) is averaged over its positions, in float32: (N, d).
        """
        graph, copied = fx.Graph(), {}
        for node in list(self.evaluation.nodes)[: self.nodes]:
            last = copied[node] = graph.node_copy(node, copied.__getitem__)
        if pooled and len(self.shape) == 3:
            last = graph.call_method("mean", (graph.call_method("float", (last,)), (2, 3)))
        graph.output(last)
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users:  # only the suffix reads it
                graph.erase_node(node)
        return fx.GraphModule(model, graph, "Prefix")

    def suffix(self, model: nn.Module, training: bool) -> fx.GraphModule:
        """The tensor (N, *shape) → the model's output. Shares modules and parameters with the model."""
        nodes = list((self.training if training else self.evaluation).nodes)
        graph = fx.Graph()
        copied = {nodes[self.nodes - 1]: graph.placeholder("features")}

        def copy_of(node: fx.Node) -> fx.Node:
            if node not in copied:  # a parameter or buffer that is fetched in the prefix
                assert node.op == "get_attr", f"{node} lives across the split"
                copied[node] = graph.node_copy(node)
            return copied[node]

        for node in nodes[self.nodes :]:
            for used in node.all_input_nodes:
                copy_of(used)
            copied[node] = graph.node_copy(node, copy_of)
        return fx.GraphModule(model, graph, "Suffix")


class Splitter:
    """Splits a network in each of its phases. It is traced in evaluation mode once."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.model = network.model

    def find(self) -> Split | None:
        """Split at the last point up to which everything is frozen and in evaluation mode.

        The model must be in that phase (modes and `requires_grad`), and is left in it. None where there is no such
        point behind the first layer with weights. Raises `UserError` where the network does not take such images.
        """
        training, evaluation, modules = _trace(self.model), self._evaluation, dict(self.model.named_modules())
        frozen = 0
        for one, other in zip(training.nodes, evaluation.nodes, strict=False):
            if not _same(one, other) or not _fixed(one, modules) or one.op == "output":
                break
            frozen += 1
        also = set(_single(evaluation, frozen))
        points = [k for k in _single(training, frozen) if k in also]
        nodes = list(evaluation.nodes)
        weighted = [
            k for k, node in enumerate(nodes) if node.op == "call_module" and _has_weights(modules[node.target])
        ]
        for k in reversed([k for k in points if weighted and weighted[0] <= k]):
            found = self._probe.shapes.get(nodes[k].name)
            if found and found[0] == PROBE:
                flops = sum(self._probe.flops[node.name] for node in nodes[: k + 1])
                path = next(reversed(nodes[k].meta.get("nn_module_stack") or [""]))
                module = nodes[k].target if nodes[k].op == "call_module" else f"{path}.{nodes[k].name}".lstrip(".")
                return Split(training, evaluation, k + 1, module, found[1:], flops)
        return None

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole network's forward pass for one image."""
        return sum(self._probe.flops.values())

    @cached_property
    def _evaluation(self) -> fx.Graph:
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            return _trace(self.model)
        finally:
            for module, mode in modes.items():
                module.training = mode

    @cached_property
    def _probe(self) -> _Probe:
        """The evaluation graph's shapes and arithmetic."""
        probe, preprocess = _Probe(self.model, self._evaluation), self.network.preprocess
        shape = (PROBE, len(preprocess.mean), preprocess.crop, preprocess.crop)
        with torch.no_grad():
            trial_run.outputs(probe, trial_run.tensors(probe), shape, torch.float32)
        return probe


def digest(prefix: fx.GraphModule) -> str:
    """A digest of a prefix: code, modules' settings, weights and buffers, and the versions of torch and torchvision."""
    found = blake2b(digest_size=16)
    found.update(f"{torch.__version__} {torchvision.__version__} {prefix.code}\n{prefix}".encode())
    for name, tensor in sorted(prefix.state_dict(keep_vars=True).items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def cast(prefix: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The prefix with its convolutions' and linear layers' weights copied as `dtype`.

    Under autocast to `dtype` it gives the same values, to the bit, without casting the frozen weights for each batch.
    """
    held = fx.GraphModule(prefix, prefix.graph, "Cast")
    for path, module in list(held.named_modules()):
        if type(module) in (nn.Conv2d, nn.Linear):
            held.set_submodule(path, copy.deepcopy(module).to(dtype))
    return held


class _Tracer(fx.Tracer):
    """Traces into all but torch's own modules, stochastic depth and blocks whose activations are computed again."""

    proxy_buffer_attributes = True  # else values computed from buffers become constants, which stay on their device

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, StochasticDepth) or gradient_checkpointing.is_enabled(m)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    return _Tracer().trace(model)


def _same(one: fx.Node, other: fx.Node) -> bool:
    """Whether nodes at the same position of two graphs are the same operation; their names follow from positions."""
    return (one.op, one.target, str(one.args), str(one.kwargs)) == (
        other.op,
        other.target,
        str(other.args),
        str(other.kwargs),
    )


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _fixed(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's output depends on its input alone until a depth is unfrozen."""
    if node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        return not getattr(modules[owner], name).requires_grad
    if node.op != "call_module":
        return True  # a function: if the mode changes it, the two graphs differ there
    inside = list(modules[node.target].modules())
    if any(parameter.requires_grad for parameter in modules[node.target].parameters()):
        return False
    return not any(m.training and (isinstance(m, RANDOM) or [*m.parameters(), *m.buffers()]) for m in inside)


def _single(graph: fx.Graph, frozen: int) -> list[int]:
    """The positions, among the first `frozen` nodes, behind which that node's output is the only live value.

    Parameters and buffers do not count: the suffix fetches them itself.
    """
    nodes = list(graph.nodes)
    position = {node: k for k, node in enumerate(nodes)}
    last_use = [max((position[user] for user in node.users), default=k) for k, node in enumerate(nodes)]
    found, live = [], set()
    for k, node in enumerate(nodes[:frozen]):
        live = {j for j in live if last_use[j] > k}
        if node.op != "get_attr" and last_use[k] > k:
            live.add(k)
        if live == {k}:
            found.append(k)
    return found


class _Probe(nn.Module):
    """Runs a graph node by node on the meta device and records each node's shape and its operations per image."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self.body = fx.GraphModule(model, graph)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops: dict[str, int] = {}

    def forward(self, images: Tensor) -> Tensor:
        shapes, flops = self.shapes, self.flops
        counter = FlopCounterMode(display=False)

        class Recording(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                before = counter.get_total_flops()
                result = super().run_node(node)
                flops[node.name] = (counter.get_total_flops() - before) // PROBE
                if isinstance(result, Tensor):
                    shapes[node.name] = tuple(result.shape)
                return result

        with counter:
            return Recording(self.body).run(images)
