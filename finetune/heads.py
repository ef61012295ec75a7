"""New heads: a linear layer, a perceptron, or T3's pooling twice with a perceptron behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetune.archs import Family
from finetune.errors import UserError


class Pool(nn.Module):
    """Pool a map (N, C, H, W) to `size` × `size`, by its mean or by mean and maximum, as (N, features, 1, 1).

    The two trailing axes let it stand before code that goes on to pool, or to flatten, by itself. Mean and maximum
    side by side are fastai's AdaptiveConcatPool2d (Howard & Gugger 2020).
    """

    def __init__(self, size: int, concat: bool, relu: bool) -> None:
        super().__init__()
        self.size, self.concat, self.relu = size, concat, relu

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu() if self.relu else x  # (N, C, H, W)
        pooled = nn.functional.adaptive_avg_pool2d(x, self.size)
        if self.concat:
            pooled = torch.cat([pooled, nn.functional.adaptive_max_pool2d(x, self.size)], 1)  # (N, 2C, size, size)
        return pooled.flatten(1)[..., None, None]  # (N, features, 1, 1)


def replace_head(
    model: nn.Module, family: Family, classes: int, kind: str, hidden: tuple[int, ...], dropout: float,
    batchnorm: bool, pool_size: int | None, image_size: int,
) -> str | None:  # fmt: skip
    """Put a new head on the model, and new last layers on its auxiliary ones.

    A `linear` or `mlp` head takes the place of the last layer. With a `pool_size`, or as `concat_pool`, the head takes
    the place of everything behind the last spatial map. The last layer's weights are zero: the first loss is
    ln(classes), and the first update leaves pretrained features alone.

    Returns the head's path where it is another than the table's. Raises `UserError` where the net has no such map.
    """
    for path in family.aux:
        model.set_submodule(path, _zeroed(nn.Linear(model.get_submodule(path).in_features, classes)))
    old = model.get_submodule(family.head)
    convolution = isinstance(old, nn.Conv2d)  # SqueezeNet classifies each pixel of the map, then takes the mean
    if family.after_head:
        model.set_submodule(family.after_head, nn.Identity())
    if kind != "concat_pool" and pool_size is None and not (convolution and kind == "mlp"):
        if convolution:
            new: nn.Module = _zeroed(nn.Conv2d(old.in_channels, classes, kernel_size=1))
        elif kind == "mlp":
            new = perceptron(old.in_features, hidden, classes, dropout, batchnorm)
        else:
            new = _zeroed(nn.Linear(old.in_features, classes))
        model.set_submodule(family.head, new)
        return None
    if not family.pool:
        asked = "--head concat_pool" if kind == "concat_pool" else "--pool-size"
        raise UserError(f"{asked} needs a spatial feature map; {family.models.split()[0]} and its family have tokens.")

    pool = Pool(pool_size or 1, kind == "concat_pool", family.relu_before_pool)
    parent, _, name = family.pool.rpartition(".")
    inside = parent == family.tail  # the net pools in what follows the map, which is replaced as a whole
    if not inside:
        model.get_submodule(parent).add_module(name, pool)
    model.set_submodule(family.tail, nn.Sequential(pool, nn.Flatten()) if inside else nn.Flatten())
    features = _features(model, image_size)
    if kind == "concat_pool":
        layers = rich(features, hidden, classes, dropout)
    elif kind == "mlp":
        layers = perceptron(features, hidden, classes, dropout, batchnorm)
    else:
        layers = nn.Sequential(_zeroed(nn.Linear(features, classes)))
    model.set_submodule(family.tail, nn.Sequential(*([pool] if inside else []), nn.Flatten(), *layers))
    return family.tail


def perceptron(features: int, hidden: tuple[int, ...], classes: int, dropout: float, batchnorm: bool) -> nn.Sequential:
    """(N, features) → (N, classes); for each hidden width: linear, BatchNorm if asked for, ReLU, dropout."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), *([nn.BatchNorm1d(width)] if batchnorm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        features = width
    return nn.Sequential(*layers, _zeroed(nn.Linear(features, classes)))


def rich(features: int, hidden: tuple[int, ...], classes: int, dropout: float) -> nn.Sequential:
    """(N, features) → (N, classes); before each linear layer BatchNorm and dropout, between two of them ReLU."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.BatchNorm1d(features), nn.Dropout(dropout), nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.BatchNorm1d(features), nn.Dropout(dropout), _zeroed(nn.Linear(features, classes)))


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _features(model: nn.Module, image_size: int) -> int:
    """The width of what reaches the head, from a forward pass without values."""
    held = {name: torch.empty_like(t, device="meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    first = next(model.parameters())
    images = torch.empty(1, first.shape[1], image_size, image_size, device="meta")
    training = model.training
    with torch.no_grad():
        features = functional_call(model.eval(), held, (images,)).shape[1]
    model.train(training)
    return features
