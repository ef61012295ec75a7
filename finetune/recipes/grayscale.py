"""Grey images through a colour net: its first layer converted, a small perceptron as head, the rest frozen.

    python train.py --recipe grayscale --data path/to/arrays.npz --model resnet50

Source: the grey-image write-up, with arrays x_train, y_train, x_test, y_test and ResNet-50. It converts the first layer
by luma (`--first-layer luma`), which makes a grey image's response a third of what the frozen layers know; the default
here is the sum of the three channels, which leaves it as it was.

Measured, best validation accuracy, mean ± standard deviation over seeds 0 to 4: 0.920 ± 0.003 on ants and bees in grey
with squeezenet1_0 (0.941 in colour, `feature_extractor`); 0.925 ± 0.013 on the starter set (0.977). That is with four
views of each training image; 1 and 2 `--views` and fresh augmentation in each epoch give 0.915 ± 0.011, 0.919 ± 0.011
and 0.920 ± 0.003 on the former, 0.924 ± 0.009, 0.926 ± 0.004 and 0.921 ± 0.011 on the latter (`python -m
benchmarks.views`). Not measured with ResNet-50 or the write-up's own arrays.
"""

from finetune.recipe import Images, Net, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="grayscale",
    net=Net(head="mlp", hidden=(256,), dropout=0.5, in_channels=1, first_layer="sum"),
    images=Images(crop_scale=0.35),
    training=Training(batch_size=8, optimizer="adamw", lr=3e-4, schedule="cosine", label_smoothing=0.1),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """The head alone is trained."""
    return Rate(1.0) if depth == depths - 1 else None
