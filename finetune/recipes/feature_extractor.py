"""Solve a new head on frozen features: fast, and a strong baseline.

    accelerate launch train.py --recipe feature_extractor

A linear head has one best solution for each strength of its L2 penalty; held-out training images choose the strength.
`--solver sgd` trains the head by gradient steps instead, epoch by epoch. Source: the second scenario of PyTorch's
transfer-learning tutorial (Chilamkurthy 2017).

Measured: test accuracy at 128 pixels with ImageNet weights, beside scikit-learn's logistic regression on raw and on
standardised features (C of ten values, chosen on validation), by `python -m benchmarks.accuracy`.

                                          mobilenet_v2           squeezenet1_0
    ants and bees, 202 images             0.922 (0.922, 0.895)   0.911 (0.876, 0.895)
    ten classes at 32 pixels, 50 each     0.971 (0.963, 0.947)   0.975 (0.960, 0.960)
    70 classes of drawn beetles, 12 each  0.866 (0.841, 0.835)   0.927 (0.903, 0.896)
    Caltech-101, 15 images each           0.856 (0.839, 0.844)   0.800 (0.800, 0.789)

The tutorial's own settings on ants and bees (`--solver sgd`, SGD at 1e-3, batch 4, step schedule, crops down to 8 % of
the area) give 0.926 ± 0.004 over seeds 0 to 2 as validation accuracy, with squeezenet1_0 and a validation loss of 22 to
27.
"""

from finetune.config.settings import Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="feature_extractor",
    images=Images(crop_scale=0.35, views=1),
    training=Training(batch_size=8, optimizer="adamw", lr=3e-4, schedule="cosine"),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train the head alone."""
    return Rate(1.0) if depth == depths - 1 else None
