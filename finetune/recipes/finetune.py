"""Train every layer from pretrained weights.

accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18
"""

from finetune.recipe import Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="finetune",
    images=Images(crop_scale=0.35),
    training=Training(
        batch_size=16,
        optimizer="adamw",
        lr=1e-4,
        schedule="cosine",
        warmup=0.1,
        clip_norm=1.0,
        weight_decay=0.05,
        label_smoothing=0.1,
    ),
)


def rate(depth: int, depths: int) -> Rate | None:
    """Everything is trained at one rate."""
    return Rate(1.0)
