"""Train every layer from pretrained weights.

accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18
"""

from finetune.recipe import Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="finetune",
    training=Training(
        optimizer="adamw", batch_size=16, lr=2e-4, schedule="cosine", warmup=0.1, clip_norm=1.0, weight_decay=0.05
    ),
)


def rate(depth: int, depths: int) -> Rate | None:
    """Everything is trained at one rate."""
    return Rate(1.0)
