"""The most accurate model within a time budget: a solved head, then fine-tuning where it pays.

    accelerate launch train.py --recipe best --data path/to/folder --model resnet18 --minutes 30

All layers are trained from the solved head as in `finetune`. At the end, the weights of the head's network, the trained
ones and two mixtures of both are compared on validation (`--interpolate`), by their loss at their own temperature. Of
those as good as the best but for chance, the nearest to half-way is taken; what scores lower than the head is left out.
`--plan` tells about how long each part takes; `--minutes` limits the whole, by fewer epochs or, where none fits, by the
head alone. Source: Kumar et al. 2022; WiSE-FT, Wortsman et al. 2022.

Measured: test accuracy of the solved head, and of this recipe, with ImageNet weights at 128 pixels; three seeds, but
two or one on the beetles and one on Caltech-101.

                                          mobilenet_v2      squeezenet1_0
    70 classes of drawn beetles, 12 each  0.866 → 0.974     0.927 → 0.981
    ten classes at 32 pixels, 50 each     0.971 → 0.988     0.975 → 0.981
    ants and bees                         0.922 → 0.930     0.911 → 0.915
    Caltech-101, 15 images each           0.856 → 0.880     0.800 → 0.815
"""

from dataclasses import replace

from finetune.recipes import finetune

SETTINGS = replace(
    finetune.SETTINGS, recipe="best", training=replace(finetune.SETTINGS.training, interpolate=True, minutes=30.0)
)
rate = finetune.rate
