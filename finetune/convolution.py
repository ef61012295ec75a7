"""The gradient of a convolution's weights as one matrix product: on a CPU, in bf16, where that is faster.

In a net's last stages maps have few pixels and kernels many weights. There oneDNN's kernel for the gradient of the
weights takes two to six times as long as the product that it stands for, and more than half of an update goes into it
(`python -m benchmarks.convolution`, on a processor with AMX).
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

PIXELS = 4  # per output channel: up to so many (twice that for 1 × 1, which needs no layout) the product was faster


@cache
def use_products() -> torch.library.Library:
    """Let torch compute gradients of weights by `weight_gradient` where that `pays`, from now on in this process.

    Torch's own kernel stays in use for all else, and for all again when `use_products.cache_clear()` is called: what
    is returned holds the registration.
    """
    own = torch.library.get_kernel("aten::convolution_backward", "CPU")

    def backward(keys, grad: Tensor, inputs: Tensor, weight: Tensor, *how):
        """The gradients of inputs, weight and bias, as torch's own kernel of the same arguments gives them."""
        _, stride, padding, dilation, transposed, _, groups, wanted = how
        plain = not transposed and groups == 1 and set(dilation) == {1}
        if not (wanted[1] and plain and pays(grad, inputs, weight)):
            return own.call_boxed(keys, grad, inputs, weight, *how)
        of_inputs, of_bias = None, None
        if wanted[0] or wanted[2]:
            rest = [wanted[0], False, wanted[2]]
            of_inputs, _, of_bias = own.call_boxed(keys, grad, inputs, weight, *how[:-1], rest)
        return of_inputs, weight_gradient(grad, inputs, weight.shape, stride, padding), of_bias

    library = torch.library.Library("aten", "IMPL")
    library.impl("convolution_backward", backward, "CPU", with_keyset=True)
    return library


def pays(grad: Tensor, inputs: Tensor, weight: Tensor) -> bool:
    """Whether the product is the faster way: a rule of shapes, so that a run computes the same whenever it is repeated.

    `grad` (N, O, H', W') and `inputs` (N, C, H, W) lie in memory with channels last, which makes them matrices as they
    are; `weight` is (O, C, h, w).
    """
    if weight.dim() != 4 or not inputs.dtype == grad.dtype == torch.bfloat16:
        return False
    if not all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (grad, inputs)):
        return False
    outputs, channels, *kernel = weight.shape
    pixels = grad.numel() // outputs  # of all images
    if kernel == [1, 1]:
        return channels >= outputs or pixels <= 2 * PIXELS * outputs
    return pixels <= PIXELS * outputs


def weight_gradient(grad: Tensor, inputs: Tensor, shape: torch.Size, stride: list[int], padding: list[int]) -> Tensor:
    """(O, C, h, w), channels last: for each weight the sum, over images and pixels, of `grad` times what it met.

    `grad` (N, O, H', W') and `inputs` (N, C, H, W) have their channels last in memory; `shape` is that of the weights.
    What the kernel met at each pixel is laid out as a row ("im2col": Chellapilla, Puri and Simard, 2006).
    """
    outputs, channels, high, wide = shape
    images, _, rows, columns = grad.shape
    above, left = padding
    padded = inputs.permute(0, 2, 3, 1)  # (N, H, W, C)
    if above or left:
        padded = F.pad(padded, (0, 0, left, left, above, above))
    image, row, column, channel = padded.stride()
    met = padded.as_strided(
        (images, rows, columns, high, wide, channels),
        (image, row * stride[0], column * stride[1], row, column, channel),
    ).reshape(-1, high * wide * channels)  # (N·H'·W', h·w·C)
    product = grad.permute(0, 2, 3, 1).reshape(-1, outputs).T @ met  # (O, h·w·C)
    return product.view(outputs, high, wide, channels).permute(0, 3, 1, 2)
