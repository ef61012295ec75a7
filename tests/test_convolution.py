"""Gradients of weights as matrix products: what torch's own kernel gives, and only where that is meant."""

import pytest
import torch
import torchvision
from torch import nn

from finetune import convolution

CASES = {  # channels in and out, kernel, size of the maps, what else
    "1 × 1": (64, 32, 1, 14, {}),
    "1 × 1, stride 2": (64, 64, 1, 14, {"stride": 2, "bias": False}),
    "3 × 3": (32, 64, 3, 7, {"padding": 1}),
    "3 × 3, stride 2": (32, 64, 3, 15, {"stride": 2, "padding": 1, "bias": False}),
    "1 × 7": (32, 64, (1, 7), 7, {"padding": (0, 3)}),
    "7 × 1, strides 2 and 1": (32, 64, (7, 1), 9, {"stride": (2, 1)}),
    "reflected": (32, 64, 3, 7, {"padding": 1, "padding_mode": "reflect"}),
}
OTHERS = {
    "groups": (nn.Conv2d(64, 64, 3, padding=1, groups=64), 7),
    "dilation": (nn.Conv2d(64, 64, 3, padding=2, dilation=2), 7),
    "transposed": (nn.ConvTranspose2d(64, 64, 2, stride=2), 7),
    "many pixels": (nn.Conv2d(8, 8, 3, padding=1), 56),
}


@pytest.fixture
def products(monkeypatch):
    """The shapes of the weights whose gradient was a product, while torch is told to use them."""
    seen = []
    own = convolution.weight_gradient

    def counted(grad, inputs, shape, stride, padding):
        seen.append(tuple(shape))
        return own(grad, inputs, shape, stride, padding)

    monkeypatch.setattr(convolution, "weight_gradient", counted)
    convolution.use_products()
    yield seen
    convolution.use_products.cache_clear()


def gradients(layer: nn.Module, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of a layer's inputs and parameters, in float32; those of the same values, whatever the dtype."""
    torch.manual_seed(0)
    channels = layer.in_channels
    images = torch.randn(4, channels, size, size).bfloat16().to(dtype).to(memory_format=torch.channels_last)
    images.requires_grad_()
    layer = layer.to(dtype).to(memory_format=torch.channels_last)
    layer.zero_grad()
    outputs = layer(images)
    outputs.backward(torch.randn(outputs.shape).bfloat16().to(dtype).to(memory_format=torch.channels_last))
    return [tensor.grad.float() for tensor in (images, *layer.parameters())]


@pytest.mark.parametrize("name", CASES)
def test_the_product_is_the_gradient(products, name):
    channels, outputs, kernel, size, how = CASES[name]
    layer = nn.Conv2d(channels, outputs, kernel, **how).bfloat16()
    found = gradients(layer, size, torch.bfloat16)
    assert products == [tuple(layer.weight.shape)]
    expected = gradients(layer, size, torch.float64)
    assert len(products) == 1, "float64 is torch's own affair"
    assert len(found) == len(expected) == (3 if layer.bias is not None else 2)
    for ours, exact in zip(found, expected, strict=True):
        # bfloat16 keeps eight bits; a mirrored pixel's gradient is rounded once more where it is added up.
        near = 2**-8 if exact.shape != expected[0].shape else 2**-4
        torch.testing.assert_close(ours, exact, rtol=near, atol=near * float(exact.abs().mean()))


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_left_to_torch(products, name):
    layer, size = OTHERS[name]
    found = gradients(layer, size, torch.bfloat16)
    assert products == []
    for ours, exact in zip(found, gradients(layer, size, torch.float64), strict=True):
        torch.testing.assert_close(ours, exact, rtol=0.02, atol=0.02 * float(exact.abs().mean()))


def test_frozen_weights_cost_nothing(products):
    layer = nn.Conv2d(64, 64, 1).requires_grad_(False)
    images = torch.randn(2, 64, 7, 7).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(images).float().sum().backward()
    assert products == []
    assert layer.weight.grad is None
    assert float(images.grad.abs().sum()) > 0


def test_a_net_learns_the_same_either_way(products):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4).to(memory_format=torch.channels_last)
    images, labels = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last), torch.arange(8) % 4

    def of_all() -> list[torch.Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        return [weight.grad.clone() for weight in net.parameters()]

    found = of_all()
    assert len(products) >= 10
    convolution.use_products.cache_clear()
    before = len(products)
    expected = of_all()
    assert len(products) == before, "taken back"
    assert len(found) == len(expected) == 62
    for ours, torchs in zip(found, expected, strict=True):
        assert float((ours - torchs).norm()) <= 1e-2 * float(torchs.norm()) + 1e-6
