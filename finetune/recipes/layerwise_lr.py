"""Train all layers, with learning rates that fall from the head to the stem.

    python train.py --recipe layerwise_lr --data caltech101 --model resnet18
    python train.py --recipe layerwise_lr --data path/to/folder --decay 0.7 --floor 0     # a rate for every depth

Each depth's rate is `--decay` times the next one's, and at least `--floor` times the head's. The defaults, 0.1 and
0.001, make four groups of layers, as in the Caltech-101 write-up, which also stops early on validation loss. The
write-up's rates (1e-3 to 1e-6) and batch: `--lr 1e-3 --schedule constant --label-smoothing 0 --batch-size 128`. Source
of layer-wise rates: Howard & Ruder 2018 (ULMFiT).

Measured: best validation accuracy, mean ± standard deviation over seeds 0 and 1: 0.975 ± 0.000 on the starter set,
0.931 ± 0.005 on ants and bees with squeezenet1_0, where the write-up's rates at batch 16 give 0.915 ± 0.009.
docs/recipes.md has a run on Caltech-101.
"""

from finetune.config.settings import Depths, Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="layerwise_lr",
    images=Images(crop_scale=0.35),
    training=Training(
        batch_size=16,
        epochs=15,
        optimizer="adam",
        lr=3e-4,
        schedule="cosine",
        clip_norm=1.0,
        label_smoothing=0.1,
        best_by="loss",
        patience=3,
    ),
    depths=Depths(decay=0.1, floor=1e-3),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train all depths, each at `--decay` of the next one's rate, and at least at `--floor` of the head's."""
    return Rate(max(settings.depths.decay ** (depths - 1 - depth), settings.depths.floor))
