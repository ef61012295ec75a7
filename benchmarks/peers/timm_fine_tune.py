"""Fine-tuning with timm's models, transforms, loss, optimizers and schedules, in a loop as its train.py has it.

AdamW with a cosine schedule, an epoch of warm-up and the best epoch on validation, as AutoGluon sets timm's models by
default (https://auto.gluon.ai/stable/tutorials/multimodal/advanced_topics/customization.html); RandAugment
(`rand-m9-mstd0.5`), label smoothing 0.1 and bilinear random crops as in the commands of timm's documentation
(https://huggingface.co/docs/timm/training_script).

AutoGluon's rate, 1e-4, is for larger networks. `RATES` are the most accurate on validation at 128 pixels, seed 0: with
mobilenet_v2 of 1e-4, 2e-4, 5e-4 and 2e-3 on ants and bees (2e-4 does as well there, and worse on tiny10); with
squeezenet1_0, which has no BatchNorm, of 1e-4, 2e-4 and 5e-4 on ants and bees.
"""

import copy

import timm
import torch
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers import task

NAMES = {"mobilenet_v2": "mobilenetv2_100"}  # timm's names; the other two are not in timm, and torchvision's are taken
EPOCHS = 10
RATES = {"squeezenet1_0": 1e-4}  # the others': 5e-4


def build(given, classes: int) -> nn.Module:
    """timm's network, else torchvision's, with the given weights and a new head."""
    theirs = task.pretrained(given).eval()
    if given.model not in NAMES:
        return task.with_head(theirs, lambda features: nn.Linear(features, classes))
    model = timm.create_model(NAMES[given.model]).eval()
    # Both list the same tensors in the same order, under other names.
    model.load_state_dict(dict(zip(model.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, given.size, given.size)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-3, atol=1e-3)
    model.reset_classifier(classes)
    return model


def main() -> None:
    flags = task.parser(__doc__)
    flags.add_argument("--lr", type=float, help="default: by network, see RATES")
    flags.add_argument("--weight-decay", type=float, default=0.05)
    flags.add_argument("--batch-size", type=int, default=32)
    given = flags.parse_args()
    task.seed_all(given.seed)
    place = task.device()
    classes, samples = task.read(given.data)
    transform = create_transform(given.size, is_training=True, auto_augment="rand-m9-mstd0.5")
    loaders = task.evaluation_loaders(samples, given)
    loaders["train"] = DataLoader(
        task.Images(samples["train"], transform), given.batch_size, shuffle=True, num_workers=given.workers
    )
    model = build(given, len(classes)).to(place)
    criterion = LabelSmoothingCrossEntropy(0.1)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=given.lr or RATES.get(given.model, 5e-4), weight_decay=given.weight_decay
    )
    steps = len(loaders["train"])
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", EPOCHS, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=steps
    )
    best, best_weights = -1.0, {}
    for epoch in range(EPOCHS):
        model.train()
        for step, (images, labels) in enumerate(loaders["train"], epoch * steps):
            schedule.step_update(step)
            with torch.autocast(place.type, enabled=place.type != "cpu"):
                loss = criterion(model(images.to(place)), labels.to(place))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = task.accuracy(model, loaders["val"])
        print(f"epoch {epoch + 1}: validation accuracy {score:.4f}", flush=True)
        if score > best:
            best, best_weights = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    task.report({"val_accuracy": best, "test_accuracy": task.accuracy(model, loaders["test"])}, "timm")


if __name__ == "__main__":
    main()
