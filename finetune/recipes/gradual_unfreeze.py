"""Train the head first, then one depth more every few epochs.

    python train.py --recipe gradual_unfreeze --data path/to/folder --model resnet18 --unfreeze-every 2

Each depth, from the head back, starts `--unfreeze-every` epochs after the one behind it; its BatchNorm keeps its
statistics until then. Source: Howard & Ruder 2018 (ULMFiT), where rates also fall towards the stem: `--decay`.
Measured, best validation accuracy, mean ± standard deviation over seeds 0 to 4: 0.973 ± 0.006 on the starter set, 0.939
± 0.010 on ants and bees with squeezenet1_0. That is with four views of each training image; 1 and 2 `--views` and fresh
augmentation in each epoch give 0.976 ± 0.010, 0.971 ± 0.005 and 0.972 ± 0.007 on the former, 0.935 ± 0.012, 0.937 ±
0.013 and 0.935 ± 0.012 on the latter (`python -m benchmarks.views`).
"""

from finetune.recipe import Depths, Images, Rate, Recipe, Training

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
    """A depth starts the later, the further it is from the head."""
    behind = depths - 1 - depth
    return Rate(settings.depths.decay**behind, start=behind * settings.depths.unfreeze_every)
