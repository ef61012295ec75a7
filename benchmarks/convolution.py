"""What gradients of weights as matrix products (`finetune.convolution`) save on a CPU: milliseconds per update in bf16.

    python -m benchmarks.convolution

Forward, backward and no optimizer, on random images of 224 pixels; the two ways take turns, update by update. `layer4`
is resnet18's last stage on what the stage before gives, which is what `last_layers` trains.
"""

import statistics
import time

import torch
from torch import nn
from torchvision.models import get_model

from finetune import convolution, hardware

CASES = (("layer4", 16), ("layer4", 32), ("resnet18", 32), ("resnet50", 32), ("densenet121", 16), ("vgg16_bn", 16))
ROUNDS = 20


def build(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """A net and its images."""
    if name != "layer4":
        return get_model(name), torch.rand(batch, 3, 224, 224)
    whole = get_model("resnet18")
    return nn.Sequential(whole.layer4, whole.avgpool, nn.Flatten(), whole.fc), torch.rand(batch, 256, 14, 14)


def update(net: nn.Module, images: torch.Tensor) -> float:
    """Seconds for one forward and backward pass."""
    net.zero_grad()
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(images).float().logsumexp(1).mean()
    loss.backward()
    return time.perf_counter() - began


def main() -> None:
    hardware.keep_memory()
    print("| net | batch | torch's kernel, ms | products, ms | ratio |\n" + "| --- " * 5 + "|")
    for name, batch in CASES:
        net, images = (thing.to(memory_format=torch.channels_last) for thing in build(name, batch))
        times: dict[str, list[float]] = {"torch": [], "products": []}
        for _ in range(2 + ROUNDS):
            times["torch"].append(update(net, images))
            convolution.use_products()
            times["products"].append(update(net, images))
            convolution.use_products.cache_clear()
        times = {way: found[2:] for way, found in times.items()}
        ratio = statistics.median(plain / ours for plain, ours in zip(*times.values(), strict=True))
        cells = [1000 * statistics.median(found) for found in times.values()]
        print(f"| {name} | {batch} | {cells[0]:.1f} | {cells[1]:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
