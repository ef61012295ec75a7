"""Train a new head on frozen features.

accelerate launch train.py --recipe feature_extractor
"""

from finetune.recipe import Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="feature_extractor", training=Training(optimizer="adamw", batch_size=16, lr=3e-3, schedule="cosine")
)


def rate(depth: int, depths: int) -> Rate | None:
    """The head alone is trained."""
    return Rate(1.0) if depth == depths - 1 else None
