"""Train a new head on frozen features.

accelerate launch train.py --recipe feature_extractor
"""

from finetune.recipe import Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="feature_extractor",
    images=Images(crop_scale=0.35),
    training=Training(batch_size=8, optimizer="adamw", lr=3e-4, schedule="cosine", label_smoothing=0.1),
)


def rate(depth: int, depths: int) -> Rate | None:
    """The head alone is trained."""
    return Rate(1.0) if depth == depths - 1 else None
