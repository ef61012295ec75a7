"""The reference: the loop of PyTorch's transfer-learning tutorial (Chilamkurthy 2017), written plainly.

    python -m benchmarks.reference_loop --data hymenoptera_data --model resnet18 --recipe feature_extractor

PIL transforms, float32, one process, everything computed anew in each epoch, frozen or not. Two differences from the
tutorial: the device is the accelerator where there is one, else the CPU; and SqueezeNet's ReLU behind the head, through
which a new head dies, is taken out. Prints the best validation accuracy and the seconds of the loop.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision import datasets, transforms

RECIPES = ("feature_extractor", "last_layers", "finetune")


def build(name: str, weights: Path | None, classes: int, recipe: str) -> nn.Module:
    """The network with a new last layer; layers that the recipe freezes need no gradient."""
    model = torchvision.models.get_model(name, weights=None)
    if weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights))
    if recipe != "finetune":
        model.requires_grad_(False)
    if name.startswith("squeezenet"):
        model.classifier[1] = nn.Conv2d(512, classes, kernel_size=1)
        model.classifier[2] = nn.Identity()
        last = model.features[12:]
    else:
        model.fc = nn.Linear(model.fc.in_features, classes)
        last = model.layer4
    if recipe == "last_layers":
        last.requires_grad_(True)
    return model


def fit(
    model: nn.Module,
    loaders: dict[str, torch.utils.data.DataLoader],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epochs: int,
    amp: bool = False,
) -> float:
    """Train a network and leave it with the weights of its best epoch; the best validation accuracy."""
    device = next(model.parameters()).device
    criterion = nn.CrossEntropyLoss()
    best, best_weights = 0.0, copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        for split in ("train", "val"):
            model.train(split == "train")
            total, correct, count = 0.0, 0, len(loaders[split].dataset)
            for images, labels in loaders[split]:
                images, labels = images.to(device), labels.to(device)
                optimizer.zero_grad()
                with torch.set_grad_enabled(split == "train"), torch.autocast(device.type, enabled=amp):
                    outputs = model(images)
                    loss = criterion(outputs, labels)
                if split == "train":
                    loss.backward()
                    optimizer.step()
                total += loss.item() * len(images)
                correct += (outputs.argmax(1) == labels).sum().item()
            if split == "train":
                schedule.step()
            accuracy = correct / count
            print(f"epoch {epoch + 1} {split} loss {total / count:.4f} accuracy {accuracy:.4f}", flush=True)
            if split == "val" and accuracy > best:
                best, best_weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and val/")
    parser.add_argument("--model", default="resnet18", help="a ResNet or a SqueezeNet")
    parser.add_argument("--weights", type=Path, help="ImageNet weights; without: random ones")
    parser.add_argument("--recipe", choices=RECIPES, default="finetune")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="mixed precision, as on a GPU")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(256), transforms.CenterCrop(224)],
    }
    loaders = {}
    for split, first in steps.items():
        transform = transforms.Compose([*first, transforms.ToTensor(), normalise])
        images = datasets.ImageFolder(given.data / split, transform)
        loaders[split] = torch.utils.data.DataLoader(images, given.batch_size, shuffle=True, num_workers=given.workers)
    model = build(given.model, given.weights, len(loaders["train"].dataset.classes), given.recipe).to(device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
    began = time.perf_counter()
    best = fit(model, loaders, optimizer, schedule, given.epochs, given.amp)
    print(f"best {best:.4f} seconds {time.perf_counter() - began:.1f}")


if __name__ == "__main__":
    main()
