"""Train every layer from pretrained weights, starting from the solved head.

    accelerate launch train.py --recipe finetune --data path/to/folder --model resnet18

The head is solved on frozen features first (Kumar et al. 2022), and is the result where no epoch after it is better on
validation. BatchNorm keeps its pretrained statistics (`--batchnorm`). Source: the first scenario of PyTorch's
transfer-learning tutorial (Chilamkurthy 2017).

The rate follows the head's loss on held-out training images (`--lr auto`). 2e-4 leaves strong features intact: on ants
and bees at 224 pixels with mobilenet_v2, where the solved head has 0.974, the last epoch has 0.974, but 0.922 at 5e-4.
Where the head is unsure, more is better: on texts in 90 fonts, where it has 0.23, 0.37 at 2e-4 and 0.57 at 1e-3.
Without normalisation layers half as much is better: with squeezenet1_0 on fifty Caltech-101 classes, 10 images each,
128 pixels, the last epoch has 0.840 and 0.830 (seeds 0 and 1) at 2e-4, 0.826 and 0.801 at 3.9e-4.

Random crops are mild where images are enlarged to twice their size or more: on ten classes at 32 pixels the last epoch
has 0.985 with crops from 70 % of the area on and 0.984 from 35 % on, on digits at 8 pixels 0.974 and 0.955.

Measured with a rate of 5e-4 and crops from 35 % on: test accuracy of the solved head, and after the last epoch, with
ImageNet weights at 96 pixels, seed 0.

                                          mobilenet_v2      squeezenet1_0
    70 classes of drawn beetles, 12 each  0.795 → 0.971     0.869 → 0.986
    twenty classes at 20 pixels, 30 each  0.752 → 0.860     0.752 → 0.812
    ten classes at 32 pixels, 50 each     0.969 → 0.969     0.956 → 0.952
    Caltech-101, 15 images each           0.776 → 0.826     0.741 → 0.739
    ants and bees, at 128 pixels          0.922 → 0.922     0.908 → 0.922

The tutorial's own settings (SGD at 1e-3, batch 4, step schedule) give 0.651 ± 0.094 on ants and bees with
squeezenet1_0, seeds 0 to 2, as validation accuracy.
"""

from finetune.config.settings import Depths, Images, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="finetune",
    images=Images(crop_scale="auto"),
    training=Training(
        epochs=15,
        batch_size=16,
        optimizer="adamw",
        lr="auto",
        schedule="cosine",
        warmup=0.3,
        clip_norm=1.0,
        weight_decay=0.05,
        ema=0.99,
    ),
    depths=Depths(decay=0.7),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train all depths, each at `--decay` of the next one's rate."""
    return Rate(settings.depths.decay ** (depths - 1 - depth))
