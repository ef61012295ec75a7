"""The two scenarios of PyTorch's transfer-learning tutorial (Chilamkurthy 2017), by `benchmarks.reference_loop`.

Batches of 4, SGD at 1e-3 with momentum 0.9, random crops from 8 % of the area, float32; the best epoch on validation.
Ten epochs and a rate that falls to a tenth after five, as `reference_loop` has them, where the tutorial trains 25 and
cuts every seven. `--frozen` is its second scenario, the network as a fixed feature extractor.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.peers import task
from benchmarks.reference_loop import fit

EPOCHS, STEP_EPOCHS, BATCH = 10, 5, 4


def main() -> None:
    flags = task.parser(__doc__)
    flags.add_argument("--frozen", action="store_true", help="train the head alone")
    given = flags.parse_args()
    task.seed_all(given.seed)
    classes, samples = task.read(given.data)
    steps = [transforms.RandomResizedCrop(given.size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    augmented = task.Images(samples["train"], transforms.Compose([*steps, transforms.Normalize(task.MEAN, task.STD)]))
    loaders = task.evaluation_loaders(samples, given)
    loaders["train"] = DataLoader(augmented, BATCH, shuffle=True, num_workers=given.workers)
    model = task.pretrained(given).requires_grad_(not given.frozen)
    model = task.with_head(model, lambda features: nn.Linear(features, len(classes))).to(task.device())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, STEP_EPOCHS, gamma=0.1)
    best = fit(model, loaders, optimizer, schedule, EPOCHS)
    task.report({"val_accuracy": best, "test_accuracy": task.accuracy(model, loaders["test"])})


if __name__ == "__main__":
    main()
