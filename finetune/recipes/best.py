"""The most accurate model within a time budget: a solved head, then fine-tuning where it pays.

    accelerate launch train.py --recipe best --data path/to/folder --model resnet18 --minutes 30

All layers are trained from the solved head as in `finetune`. At the end, the weights of the head's network, the trained
ones and two mixtures of both are compared on validation (`--interpolate`). The head's stay unless others are better by
more than the standard error of the difference. `--plan` tells about how long each part takes; `--minutes` limits the
whole, by fewer epochs or, where none fits, by the head alone. Source: Kumar et al. 2022; WiSE-FT, Wortsman et al. 2022.

Measured: test accuracy of the solved head, and of this recipe, with ImageNet weights at 96 pixels, seed 0.

                                          mobilenet_v2      squeezenet1_0
    70 classes of drawn beetles, 12 each                    0.869 → 0.978
    ten classes at 32 pixels, 50 each     0.969 → 0.960     0.956 → 0.958
    Caltech-101, 15 images each                             0.741 → 0.760
    ants and bees, at 128 pixels          0.922 → 0.922     0.908 → 0.908
"""

from dataclasses import replace

from finetune.recipes import finetune

SETTINGS = replace(
    finetune.SETTINGS, recipe="best", training=replace(finetune.SETTINGS.training, interpolate=True, minutes=30.0)
)
rate = finetune.rate
