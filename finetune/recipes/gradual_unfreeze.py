"""Train the head first, then unfreeze one more depth every few epochs.

    python train.py --recipe gradual_unfreeze --data path/to/folder --model resnet18 --unfreeze-every 2

From the head back, each depth starts `--unfreeze-every` epochs after the next; until then its BatchNorm keeps its
statistics. Source: Howard & Ruder 2018 (ULMFiT), where learning rates also fall towards the stem (`--decay`).

Measured: best validation accuracy, mean ± standard deviation, seeds 0 and 1: 0.980 ± 0.000 on the starter set, 0.938 ±
0.005 on ants and bees with squeezenet1_0. docs/defaults.md has it by `--views`.
"""

from finetune.config.settings import Depths, Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="gradual_unfreeze",
    images=Images(crop_scale=0.35),
    training=Training(
        batch_size=16,
        optimizer="adamw",
        lr=3e-4,
        schedule="cosine",
        clip_norm=1.0,
        weight_decay=0.05,
        label_smoothing=0.1,
    ),
    depths=Depths(decay=0.5),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Start each depth `--unfreeze-every` epochs after the next one towards the head, at `--decay` of its rate."""
    from_head = depths - 1 - depth
    return Rate(settings.depths.decay**from_head, start=from_head * settings.depths.unfreeze_every)
