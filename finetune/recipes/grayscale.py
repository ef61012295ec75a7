"""Train an MLP head on frozen features of grey images, with the first layer converted to one channel.

    python train.py --recipe grayscale --data path/to/arrays.npz --model resnet50

Source: the grey-image write-up, with arrays x_train, y_train, x_test, y_test and ResNet-50. It converts the first layer
by `--first-layer luma`, which makes the response to grey a third of what the frozen layers were trained on. The default
here, sum, keeps it.

Measured: best validation accuracy, mean ± standard deviation over seeds 0 to 4, in grey, by `--views` (default 4, 0 is
new augmentation in every epoch; `python -m benchmarks.views`). Ants and bees are with squeezenet1_0. In colour,
`feature_extractor` has 0.980 and 0.924. Not measured with ResNet-50 or the write-up's own arrays.

    --views        1              2              4              0
    starter set    0.924 ± 0.009  0.926 ± 0.004  0.925 ± 0.013  0.921 ± 0.011
    ants and bees  0.915 ± 0.011  0.919 ± 0.011  0.920 ± 0.003  0.920 ± 0.003
"""

from finetune.config.settings import Images, Net, Rate, Recipe, Training

SETTINGS = Recipe(
    recipe="grayscale",
    net=Net(head="mlp", hidden=(256,), dropout=0.5, in_channels=1, first_layer="sum"),
    images=Images(crop_scale=0.35),
    training=Training(batch_size=8, optimizer="adamw", lr=3e-4, schedule="cosine", label_smoothing=0.1),
)


def rate(settings: Recipe, depth: int, depths: int) -> Rate | None:
    """Train the head alone."""
    return Rate(1.0) if depth == depths - 1 else None
