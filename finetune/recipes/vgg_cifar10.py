"""Train an MLP head on frozen VGG-16 features of CIFAR-10.

    python train.py --recipe vgg_cifar10

Source: the CIFAR-10 write-up: 32 × 32 pixels, no augmentation, batch 1024, Adam at 1e-3, 5 epochs; the last feature map
is pooled to 3 × 3 and classified by 4608 → 512 → 128 → 10. Its 71.35 % on the training images are not measured here:
that needs a download.
"""

from finetune.config.settings import Images, Net, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="vgg_cifar10",
    net=Net(model="vgg16", head="mlp", hidden=(512, 128), dropout=0.0, pool_size=3, image_size=32),
    images=Images(data="cifar10", augment="none"),
    training=Training(batch_size=1024, epochs=5, optimizer="adam", lr=1e-3, schedule="constant"),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train the head alone."""
    return Rate(1.0) if depth == depths - 1 else None
