"""Where a frozen start of a network ends: found on its graph, so that it holds for every architecture.

The prefix up to there computes the same in every epoch; the suffix behind it is what is trained.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

PROBE = 11  # images of the trial run on the meta device; no other axis that comes first has this length


@dataclass(frozen=True)
class Cut:
    """A network in two, at a point where one tensor is all that is alive."""

    training: fx.Graph
    """The whole network in training mode (of what is trained)."""
    evaluation: fx.Graph
    """The whole network in evaluation mode. Both begin with the same nodes."""
    nodes: int
    """How many of them are in the prefix."""
    place: str
    """The module that makes the tensor."""
    shape: tuple[int, ...]
    """Of that tensor, without the axis of the images."""
    prefix_flops: int
    """Floating-point operations of the prefix for one image."""
    suffix_flops: int
    """The same of the rest, forwards only."""

    @property
    def flops(self) -> int:
        """Of the whole network, forwards, for one image."""
        return self.prefix_flops + self.suffix_flops

    @property
    def values(self) -> int:
        """Numbers in one image's tensor."""
        return math.prod(self.shape)

    def prefix(self, model: nn.Module) -> fx.GraphModule:
        """Images (N, C, H, W) → the tensor (N, *shape). Modules and parameters are the model's own."""
        graph, copied = fx.Graph(), {}
        for node in list(self.evaluation.nodes)[: self.nodes]:
            last = copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(last)
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users:  # what only the suffix reads
                graph.erase_node(node)
        return fx.GraphModule(model, graph, "Prefix")

    def suffix(self, model: nn.Module, training: bool) -> fx.GraphModule:
        """The tensor (N, *shape) → what the model gives. Modules and parameters are the model's own."""
        nodes = list((self.training if training else self.evaluation).nodes)
        graph = fx.Graph()
        copied = {nodes[self.nodes - 1]: graph.placeholder("features")}

        def here(node: fx.Node) -> fx.Node:
            if node not in copied:  # a parameter or buffer that was fetched before the cut
                assert node.op == "get_attr", f"{node} lives across the cut"
                copied[node] = graph.node_copy(node)
            return copied[node]

        for node in nodes[self.nodes :]:
            for used in node.all_input_nodes:
                here(used)
            copied[node] = graph.node_copy(node, here)
        return fx.GraphModule(model, graph, "Suffix")


def find(model: nn.Module, shape: tuple[int, ...]) -> Cut | None:
    """The last place up to which everything is frozen and in evaluation mode, for images of `shape` (C, H, W).

    The model is in the mode and asks for the gradients of the phase in question; both are left as they are. None where
    no such place is behind the first layer.
    """
    modes = {module: module.training for module in model.modules()}
    training = _trace(model)
    modules = dict(model.named_modules())
    model.eval()
    try:
        evaluation = _trace(model)
    finally:
        for module, mode in modes.items():
            module.training = mode
    frozen = 0
    for one, other in zip(training.nodes, evaluation.nodes, strict=False):
        if not _same(one, other) or not _fixed(one, model, modules) or one.op == "output":
            break
        frozen += 1
    cuts = [k for k in _single(training, frozen) if k in set(_single(evaluation, frozen))]
    nodes = list(evaluation.nodes)
    computed = {node: k for k, node in enumerate(nodes) if node.op == "call_module" and _weights(modules[node.target])}
    cuts = [k for k in cuts if any(at <= k for at in computed.values())]
    if not cuts:
        return None
    probe = _Probe(model, evaluation)
    held = {name: torch.empty_like(t, device="meta") for name, t in [*probe.named_parameters(), *probe.named_buffers()]}
    with torch.no_grad():
        functional_call(probe, held, (torch.empty(PROBE, *shape, device="meta"),))
    for k in reversed(cuts):
        found = probe.shapes.get(nodes[k].name)
        if found and found[0] == PROBE:
            flops = [probe.flops[node.name] // PROBE for node in nodes]
            path = next(reversed(nodes[k].meta.get("nn_module_stack") or [""]))
            place = nodes[k].target if nodes[k].op == "call_module" else f"{path}.{nodes[k].name}".lstrip(".")
            return Cut(training, evaluation, k + 1, place, found[1:], sum(flops[: k + 1]), sum(flops[k + 1 :]))
    return None


def digest(prefix: fx.GraphModule) -> str:
    """A fingerprint of what a prefix computes: its code, its modules' settings, every weight and buffer, versions."""
    found = blake2b(digest_size=16)
    found.update(f"{torch.__version__} {torchvision.__version__} {prefix.code}\n{prefix}".encode())
    for name, tensor in sorted(prefix.state_dict(keep_vars=True).items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def cast(prefix: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same, to the bit, under an autocast to `dtype`: its convolutions and linear layers hold their weights in it.

    Autocast would cast frozen weights anew for each batch. The layers are copies; the model keeps its own.
    """
    held = fx.GraphModule(prefix, prefix.graph, "Cast")
    for path, module in list(held.named_modules()):
        if type(module) in (nn.Conv2d, nn.Linear):
            held.set_submodule(path, copy.deepcopy(module).to(dtype))
    return held


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own modules and what is random by itself."""

    proxy_buffer_attributes = True  # else what is made of a buffer becomes a constant that stays on its device

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    return _Tracer().trace(model)


def _same(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes at the same place of two graphs do the same; their names follow from their places."""
    return (one.op, one.target, str(one.args), str(one.kwargs)) == (
        other.op,
        other.target,
        str(other.args),
        str(other.kwargs),
    )


def _weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _fixed(node: fx.Node, model: nn.Module, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's result depends on its input alone, now and until something is unfrozen."""
    if node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        return not getattr(modules[owner], name).requires_grad
    if node.op != "call_module":
        return True  # a function: what differs between the modes differs between the two graphs
    inside = list(modules[node.target].modules())
    if any(parameter.requires_grad for parameter in modules[node.target].parameters()):
        return False
    random = (_DropoutNd, StochasticDepth)
    return not any(m.training and (isinstance(m, random) or [*m.parameters(), *m.buffers()]) for m in inside)


def _single(graph: fx.Graph, frozen: int) -> list[int]:
    """The positions, among the first `frozen` nodes, behind which that node's own result is all that is alive.

    Parameters and buffers do not count: the suffix fetches its own.
    """
    nodes = list(graph.nodes)
    position = {node: k for k, node in enumerate(nodes)}
    last_use = [max((position[user] for user in node.users), default=k) for k, node in enumerate(nodes)]
    found, alive = [], set()
    for k, node in enumerate(nodes[:frozen]):
        alive = {j for j in alive if last_use[j] > k}
        if node.op != "get_attr" and last_use[k] > k:
            alive.add(k)
        if alive == {k}:
            found.append(k)
    return found


class _Probe(nn.Module):
    """Runs a graph node by node on tensors without values, and notes the shapes and the arithmetic."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        self.body = fx.GraphModule(model, graph)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops: dict[str, int] = {}

    def forward(self, images: Tensor) -> Tensor:
        shapes, flops = self.shapes, self.flops
        counter = FlopCounterMode(display=False)

        class Noting(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                before = counter.get_total_flops()
                result = super().run_node(node)
                flops[node.name] = counter.get_total_flops() - before
                if isinstance(result, Tensor):
                    shapes[node.name] = tuple(result.shape)
                return result

        with counter:
            return Noting(self.body).run(images)
