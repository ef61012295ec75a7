"""Train a head on average and max pooling with strong augmentation, then all layers.

    python train.py --recipe concat_pool --data flowers102 --model densenet161

Source: the Flowers-102 write-up with DenseNet-161: concatenated pooling, BatchNorm, dropout 0.35 and 1024 hidden units;
rotation by 25 degrees and colour jitter; layers unfrozen selectively, here after the head's first epochs.

Measured: best validation accuracy, mean ± standard deviation: 0.985 ± 0.000 on the starter set (seeds 0 and 1), 0.950 ±
0.010 on ants and bees with squeezenet1_0 (seeds 0 to 4). docs/defaults.md has it by `--views`. Not measured on
Flowers-102.
"""

from finetune.config.settings import Images, Net, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="concat_pool",
    net=Net(head="concat_pool", hidden=(1024,), dropout=0.35),
    images=Images(augment="strong", crop_scale=0.35),
    training=Training(
        batch_size=16,
        optimizer="adamw",
        lr=5e-4,
        schedule="cosine",
        clip_norm=1.0,
        weight_decay=0.05,
        label_smoothing=0.1,
    ),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train the head from the start, all other depths after `--head-epochs` at `--body-scale` of its rate."""
    return Rate(1.0) if depth == depths - 1 else Rate(settings.depths.body_scale, start=settings.depths.head_epochs)
