"""Train the last few depths and keep the rest frozen: between `feature_extractor` and `finetune`.

    python train.py --recipe last_layers --layers 2 --data path/to/folder --model resnet18

Source: "train the last few layers" in the grey-image write-up, which finds that fewer layers generalise better.

Measured: best validation accuracy, mean ± standard deviation over seeds 0 and 1: 0.982 ± 0.004 on the starter set,
0.941 ± 0.000 on ants and bees with squeezenet1_0. docs/defaults.md has it by `--views`.
"""

from finetune.config.settings import Images, Rate, Recipe, Training
from finetune.errors import UserError

SETTINGS = Recipe(
    recipe="last_layers",
    images=Images(crop_scale=0.35),
    training=Training(
        batch_size=16,
        optimizer="adamw",
        lr=3e-4,
        schedule="cosine",
        warmup=0.1,
        clip_norm=1.0,
        weight_decay=0.05,
        label_smoothing=0.1,
    ),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train the last `--layers` depths at one rate."""
    if settings.depths.layers > depths:
        raise UserError(
            f"last_layers: --layers {settings.depths.layers}, but {settings.net.model} has {depths} depths."
        )
    return Rate(1.0) if depth >= depths - settings.depths.layers else None
