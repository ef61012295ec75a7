"""Train every layer from pretrained weights.

    accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18

Source: the first scenario of PyTorch's transfer-learning tutorial (Chilamkurthy 2017).

Measured on ants and bees with squeezenet1_0: best validation accuracy 0.937 ± 0.004, mean ± standard deviation over
seeds 0 to 2. The tutorial's own settings (SGD at 1e-3, batch 4, step schedule) give 0.651 ± 0.094. With one seed: 0.935
without label smoothing; then 0.922 at twice the learning rate, 0.810 at four times.
"""

from finetune.config.settings import Images, Rate, Recipe, Training

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


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train all depths at one rate."""
    return Rate(1.0)
