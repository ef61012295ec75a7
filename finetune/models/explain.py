"""Heat maps: which parts of an image speak for a class.

HiResCAM (Draelos & Carin 2020): each cell's values times their own gradients, summed over the channels. At a last map
that is averaged before a linear layer, that is CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017). On earlier
maps Grad-CAM, whose gradients are averaged over the map, leaves many pictures without any heat.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config.settings import Net
from finetune.models.architectures import Family, Preprocess, find, stages
from finetune.recipes import depth_name

CELLS = 6  # per side; a coarser map hardly says where


class _Layer(NamedTuple):
    """A layer whose output has a value for each cell of a grid over the image."""

    path: str
    depth: int
    channels: int
    """The axis of channels: 1 in (N, C, h, w), 3 in (N, h, w, C), 2 in tokens (N, 1 + h * w, C), class token first."""
    side: int
    """Cells per side of a square image."""
    step: int
    """Pixels from one cell to the next."""
    first: float
    """The pixel, from 0, at the centre of the first cell's receptive field. Strided convolutions put it at the edge."""


class Explainer:
    """Heat maps of a model's logits, from its last layer with at least `CELLS` cells a side."""

    method: str
    """For captions, such as "HiResCAM at stage 4, 7 × 7 cells"."""

    def __init__(self, model: nn.Module, family: Family, preprocess: Preprocess) -> None:
        """Put the model into evaluation mode, and run it once to see its maps."""
        self.model, self.preprocess, depths = model.eval(), preprocess, stages(model, family)
        layers = _layers(self.model, depths, family.token_norm, preprocess)
        self.layer = max(layers, key=lambda layer: (min(layer.side, CELLS), layers.index(layer)))
        name, side = depth_name(self.layer.depth, len(depths)), self.layer.side
        self.method = f"HiResCAM at {name}, {side} × {side} {'tokens' if self.layer.channels == 2 else 'cells'}"

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """Heat maps of one class per image, whatever the gradient mode of the caller; no gradient is left behind.

        `x` is the model's input (N, C, H, W), normalised; `classes` are (N,) int64. Returns (N, H, W), float32, on the
        CPU: in [0, 1], the brightest pixel of each image 1, and what speaks against the class 0. A map of zeros says
        that nothing speaks for it.
        """
        device = next(self.model.parameters()).device
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, since autograd takes no tensors of inference mode.
            values, gradients = self._differentiate(x.to(device).clone(), classes.to(device).clone())
        cells = _cells(values, gradients, self.layer).relu()  # (N, h, w)
        heat = _resize(cells, self.layer, x.shape[2], x.shape[3])  # (N, H, W)
        most = heat.amax((1, 2), keepdim=True)
        return (heat / torch.where(most > 0, most, 1)).cpu()

    def _differentiate(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output, and the gradient of each image's chosen logit by it."""
        kept: list[Tensor] = []

        def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output.detach().clone().requires_grad_())
            return kept[0].clone()  # the next layer may work in place

        with self.model.get_submodule(self.layer.path).register_forward_hook(cut):
            logits = self.model(x)  # (N, classes)
        (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
        return kept[0].detach().float(), gradients.float()


def make_explainer(model: nn.Module, net: Net, preprocess: Preprocess) -> Explainer:
    """The explainer of a model with the settings and the transform of its model folder."""
    return Explainer(model, find(net.model), preprocess)


@torch.no_grad()
def _layers(model: nn.Module, depths: list[list[str]], token_norm: str, preprocess: Preprocess) -> list[_Layer]:
    """The layers whose output covers the image, in the order of the forward pass; see `Family.token_norm`."""
    modules, found = dict(model.named_modules()), []
    side, step, first = preprocess.crop, 1, 0.0  # of the smallest map so far

    def shrink(kernel: int, stride: int, padding: int, new: int) -> None:
        nonlocal side, step, first
        first += ((kernel - 1) / 2 - padding) * step
        side, step = new, step * stride

    def after_window(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if inputs[0].shape[-1] == side > output.shape[-1]:  # of parallel branches, the first counts
            sizes = (module.kernel_size, module.stride, module.padding)
            kernel, stride, padding = (size if isinstance(size, int) else size[-1] for size in sizes)
            shrink(kernel, stride, padding, output.shape[-1])

    def after_layer(module: nn.Module, inputs: tuple[Tensor], output: Tensor, path: str, depth: int) -> None:
        shape = output.shape
        if path == tokens:
            found.append(_Layer(path, depth, 2, side, step, first))
        elif len(shape) == 4:
            if shape[2] < side:  # Swin's merging of patches, which has no window
                shrink(side // shape[2], side // shape[2], 0, shape[2])
            # The two axes of a square image's map have the same length.
            found.append(_Layer(path, depth, 1 if shape[2] == shape[3] else 3, side, step, first))

    windows = [module for module in modules.values() if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    hooks = [module.register_forward_hook(after_window) for module in windows]
    tokens = f"{depths[-2][0]}.{token_norm}" if token_norm else None
    depth_of = {path: depth for depth, paths in enumerate(depths) for path in paths if path in modules}
    for path, depth in {**depth_of, **({tokens: len(depths) - 2} if tokens else {})}.items():
        hooks.append(modules[path].register_forward_hook(partial(after_layer, path=path, depth=depth)))
    image = torch.zeros(1, len(preprocess.mean), preprocess.crop, preprocess.crop)
    model(image.to(next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return found


def _cells(values: Tensor, gradients: Tensor, layer: _Layer) -> Tensor:
    """What each cell adds to the logit, to first order: (N, h, w)."""
    cells = (values * gradients).sum(layer.channels)
    return cells[:, 1:].unflatten(1, (layer.side, layer.side)) if layer.channels == 2 else cells


def _resize(cells: Tensor, layer: _Layer, height: int, width: int) -> Tensor:
    """Cells (N, h, w) → (N, H, W), bilinear between their centres, constant outside of them."""

    def positions(pixels: int, count: int) -> Tensor:
        """Each pixel's position, from the first cell (-1) to the last (1)."""
        return (torch.arange(pixels, device=cells.device) - layer.first) / layer.step * 2 / max(1, count - 1) - 1

    rows, columns = positions(height, cells.shape[1]), positions(width, cells.shape[2])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2)
    grid = grid.expand(len(cells), -1, -1, -1)
    return F.grid_sample(cells[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
