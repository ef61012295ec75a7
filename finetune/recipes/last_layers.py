"""Train the last few depths, and keep the rest frozen: between `feature_extractor` and `finetune`.

    python train.py --recipe last_layers --layers 2 --data path/to/folder --model resnet18

Source: "train the last few layers", as the grey-image write-up has it: the fewer, the better for generalisation.
Measured, best validation accuracy, mean ± standard deviation over seeds 0 to 4: 0.977 ± 0.003 on the starter set, 0.939
± 0.004 on ants and bees with squeezenet1_0. That is with four views of each training image; 1 and 2 `--views` and fresh
augmentation in each epoch give 0.978 ± 0.003, 0.978 ± 0.003 and 0.976 ± 0.002 on the former, 0.928 ± 0.005, 0.935 ±
0.005 and 0.935 ± 0.007 on the latter (`python -m benchmarks.views`).
"""

from finetune.errors import UserError
from finetune.recipe import Images, Rate, Recipe, Training

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
    """The last `--layers` depths are trained at one rate."""
    if settings.depths.layers > depths:
        raise UserError(
            f"last_layers: --layers {settings.depths.layers}, but {settings.net.model} has {depths} depths."
        )
    return Rate(1.0) if depth >= depths - settings.depths.layers else None
