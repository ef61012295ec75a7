"""The most accurate model within a time budget: a solved head, then fine-tuning where it pays.

    accelerate launch train.py --recipe best --data path/to/folder --model resnet18 --minutes 30

All layers are trained from the solved head as in `finetune`, with an average of the weights (`--ema`). At the end, the
weights of the head's network, the trained ones and two mixtures of both are compared on validation (`--interpolate`),
so that the result is not worse there than the head. `--plan` tells about how long each part takes; `--minutes` limits
the whole, by fewer epochs or, where none fits, by the head alone. Source: Kumar et al. 2022; WiSE-FT, Wortsman et al.
2022.
"""

from finetune.config.settings import Depths, Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="best",
    images=Images(crop_scale=0.35),
    training=Training(
        epochs=15,
        minutes=30.0,
        batch_size=16,
        optimizer="adamw",
        lr=5e-4,
        schedule="cosine",
        warmup=0.3,
        clip_norm=1.0,
        weight_decay=0.05,
        ema=0.99,
        interpolate=True,
    ),
    depths=Depths(decay=0.7),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train all depths, each at `--decay` of the next one's rate."""
    return Rate(settings.depths.decay ** (depths - 1 - depth))
