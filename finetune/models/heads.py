"""New heads: a linear layer, an MLP, or concatenated pooling with an MLP behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models.architectures import Family, find


class Pool(nn.Module):
    """Adaptive pooling of a map (N, C, H, W) to `size` × `size`, flattened to (N, features, 1, 1).

    `concat` concatenates average and max pooling, as fastai's AdaptiveConcatPool2d (Howard & Gugger 2020). `relu`
    rectifies the map first. The output keeps two axes of length 1, because the layers after it pool or flatten again.
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


def replace_head(model: nn.Module, family: Family, net: Net, classes: int, image_size: int) -> str | None:
    """Replace a model's head by the one in `net`, and the last layers of its auxiliary heads.

    A `linear` or `mlp` head replaces the last layer. With `pool_size` or `concat_pool`, it replaces all layers after
    the last feature map. The weights of the new last layer are zero: the first loss is ln(classes), and the first step
    does not change pretrained features.

    Returns the new head's path if it replaces more than the last layer. Raises `UserError` if the model has no feature
    map to pool.
    """
    for path in family.aux:
        model.set_submodule(path, _zeroed(nn.Linear(model.get_submodule(path).in_features, classes)))
    if family.after_head:
        model.set_submodule(family.after_head, nn.Identity())
    old = model.get_submodule(family.head)
    convolution = isinstance(old, nn.Conv2d)  # SqueezeNet classifies each position of the map and averages the logits
    if net.head == "concat_pool" or net.pool_size is not None or (convolution and net.head == "mlp"):
        return _replace_tail(model, family, net, classes, image_size)
    if convolution:
        new: nn.Module = _zeroed(nn.Conv2d(old.in_channels, classes, kernel_size=1))
    else:
        new = make_head(net, old.in_features, classes)
    model.set_submodule(family.head, new)
    return None


def _replace_tail(model: nn.Module, family: Family, net: Net, classes: int, image_size: int) -> str:
    """Replace all layers after the last feature map by a pool and a head."""
    if not family.pool:
        flag = "--head concat_pool" if net.head == "concat_pool" else "--pool-size"
        raise UserError(f"{flag} needs a spatial feature map; {net.model} has tokens.")
    pool = Pool(net.pool_size or 1, net.head == "concat_pool", family.relu_before_pool)
    parent, _, name = family.pool.rpartition(".")
    inside = parent == family.tail  # the pool is a part of what is replaced
    if not inside:
        model.get_submodule(parent).add_module(name, pool)
    model.set_submodule(family.tail, nn.Sequential(pool, nn.Flatten()) if inside else nn.Flatten())
    head = make_head(net, _features(model, net.in_channels, image_size), classes)
    layers = head if isinstance(head, nn.Sequential) else [head]
    model.set_submodule(family.tail, nn.Sequential(*([pool] if inside else []), nn.Flatten(), *layers))
    return family.tail


def make_head(net: Net, features: int, classes: int) -> nn.Module:
    """The head that `net` describes: (N, features) → (N, classes)."""
    if net.head == "concat_pool":
        return _concat_pool_head(features, net.hidden, classes, net.dropout)
    if net.head == "mlp":
        return _mlp(features, net.hidden, classes, net.dropout, net.head_batchnorm)
    return _zeroed(nn.Linear(features, classes))


def _mlp(features: int, hidden: tuple[int, ...], classes: int, dropout: float, batchnorm: bool) -> nn.Sequential:
    """Linear, BatchNorm if asked for, ReLU and dropout for each hidden width, then a linear layer."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), *([nn.BatchNorm1d(width)] if batchnorm else []), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        features = width
    return nn.Sequential(*layers, _zeroed(nn.Linear(features, classes)))


def _concat_pool_head(features: int, hidden: tuple[int, ...], classes: int, dropout: float) -> nn.Sequential:
    """BatchNorm and dropout before each linear layer, ReLU between two of them, as in fastai."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.BatchNorm1d(features), nn.Dropout(dropout), nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.BatchNorm1d(features), nn.Dropout(dropout), _zeroed(nn.Linear(features, classes)))


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _features(model: nn.Module, channels: int, image_size: int) -> int:
    """The number of features that reach the head, from a forward pass on the meta device."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    images = torch.empty(1, channels, image_size, image_size, device="meta")
    training = model.training
    with torch.no_grad():
        features = functional_call(model.eval(), on_meta, (images,)).shape[1]
    model.train(training)
    return features


def after_pool(model: nn.Module, net: Net) -> nn.Module:
    """The module whose input are a model's features (N, D): its head. SqueezeNet's gets a map (N, D, h, w)."""
    family = find(net.model)
    head = model.get_submodule(family.head)
    if net.pool_size is None and (net.head == "linear" or (net.head == "mlp" and isinstance(head, nn.Sequential))):
        return head
    layers = list(model.get_submodule(family.tail))  # `_replace_tail` has made them
    return layers[[isinstance(layer, nn.Flatten) for layer in layers].index(True) + 1]
