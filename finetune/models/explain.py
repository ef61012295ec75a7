"""Heat maps: which parts of an image add to the logit of a class.

The method is HiResCAM (Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks"): gradient times activation of a feature map, summed over its channels. Where the map is
averaged and a linear layer follows, that is CAM (Zhou et al. 2016) and Grad-CAM (Selvaraju et al. 2017). Elsewhere
Grad-CAM averages the gradient over the map, and can be bright where the head does not look.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from finetune.config.settings import Net
from finetune.models.architectures import Family, Preprocess, find, stages
from finetune.recipes import depth_name

CELLS = 4  # per side; a coarser map hardly says where
OPACITY = 0.5  # of the colours over the picture: the picture keeps half of its contrast


class _Layer(NamedTuple):
    """A layer whose output has a value for each place of the image."""

    path: str
    depth: int
    side: int
    """Places per side of a square image."""
    places: str
    """Their name: `cells` of a map, or `tokens`."""
    channels: int
    """The axis of channels: 1 in (N, C, h, w), 3 in (N, h, w, C), 2 in tokens (N, 1 + h * w, C), class token first."""


class Explainer:
    """Heat maps of a model's logits, from the last layer with at least `CELLS` places a side."""

    method: str
    """For captions, such as "HiResCAM at stage 4, 7 × 7 cells"."""

    def __init__(self, model: nn.Module, family: Family, preprocess: Preprocess) -> None:
        """Put the model into evaluation mode, and run it once to see its maps' sizes."""
        self.model = model.eval()
        depths = stages(model, family)
        image = torch.zeros(1, len(preprocess.mean), preprocess.crop, preprocess.crop)
        layers = _layers(self.model, depths, family.token_norm, image)
        self.layer = max(layers, key=lambda layer: (min(layer.side, CELLS), layers.index(layer)))
        name, side = depth_name(self.layer.depth, len(depths)), self.layer.side
        self.method = f"HiResCAM at {name}, {side} × {side} {self.layer.places}"

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """Heat maps of one class per image, whatever the gradient mode of the caller; no gradient is left behind.

        `x` is the model's input (N, C, H, W), normalised; `classes` are (N,) int64. Returns (N, H, W), float32, on the
        CPU: in [0, 1], the brightest place of each image 1, and places that speak against the class 0. A map of zeros
        says that none speaks for it.
        """
        device, kept = next(self.model.parameters()).device, []

        def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept.append(output.detach().clone().requires_grad_())
            return kept[0].clone()  # the next layer may work in place

        with torch.inference_mode(False), torch.enable_grad():
            x, classes = x.to(device).clone(), classes.to(device).clone()  # autograd takes none of inference mode
            with self.model.get_submodule(self.layer.path).register_forward_hook(cut):
                logits = self.model(x)  # (N, classes)
            chosen = logits.gather(1, classes[:, None]).sum()
            (gradients,) = torch.autograd.grad(chosen, kept)
        cells = (kept[0].detach() * gradients).sum(self.layer.channels)  # (N, h, w), or (N, 1 + h * w)
        if cells.ndim == 2:
            cells = cells[:, 1:].unflatten(1, (-1, self.layer.side))
        heat = F.interpolate(cells.float().relu()[:, None], x.shape[-2:], mode="bilinear")[:, 0]  # (N, H, W)
        most = heat.amax((1, 2), keepdim=True)
        return (heat / torch.where(most > 0, most, 1)).cpu()


def make_explainer(model: nn.Module, net: Net, preprocess: Preprocess) -> Explainer:
    """The explainer of a model with the settings and the transform of its model folder."""
    return Explainer(model, find(net.model), preprocess)


@torch.no_grad()
def _layers(model: nn.Module, depths: list[list[str]], norm: str, image: Tensor) -> list[_Layer]:
    """The layers whose output has a value for each place of a square image (1, C, H, H), in the forward pass's order.

    They are feature maps and, in the last block of a transformer, its `Family.token_norm`.
    """
    modules, found, hooks = dict(model.named_modules()), [], []
    of_path = {path: depth for depth, paths in enumerate(depths) for path in paths if path in modules}
    tokens = f"{depths[-2][0]}.{norm}" if norm else None
    for path, depth in [*of_path.items(), *([(tokens, len(depths) - 2)] if norm else [])]:

        def look(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, path: str = path, depth: int = depth) -> None:
            shape = output.shape
            if path == tokens:
                found.append(_Layer(path, depth, round((shape[1] - 1) ** 0.5), "tokens", 2))
            elif len(shape) == 4:  # the two axes of a square image's map have the same length
                found.append(_Layer(path, depth, shape[2], "cells", 1 if shape[2] == shape[3] else 3))

        hooks.append(modules[path].register_forward_hook(look))
    model(image.to(next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return found


def to_picture(image: Tensor) -> Image.Image:
    """An image (C, H, W), uint8 or in [0, 1], as a picture: in grey where it has fewer than three channels."""
    return to_pil_image(image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1))


def overlay(image: Tensor | Image.Image, heat: Tensor) -> Image.Image:
    """A picture in grey under its heat map, from violet (0) over green to yellow (1).

    `image` is the network's input before normalisation, (C, H, W), uint8 or in [0, 1], or the same as a picture of any
    size; `heat` is (H, W) in [0, 1].
    """
    import matplotlib  # late: it takes long to import

    picture = image if isinstance(image, Image.Image) else to_picture(image)
    heat = F.interpolate(heat[None, None], picture.size[::-1], mode="bilinear")[0, 0]
    colours = matplotlib.colormaps["viridis"](heat.numpy(), bytes=True)[..., :3]  # (H, W, 3)
    return Image.blend(picture.convert("L").convert("RGB"), Image.fromarray(colours), OPACITY)
