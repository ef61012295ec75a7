"""Every setting of a run: its default, its bounds and its meaning. No other file holds a default.

Each field is a flag of the command line, and its docstring is the flag's help. A recipe in `finetune/recipes/` changes
the defaults that it needs differently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

STARTER_MODEL, STARTER_SIZE = "shufflenet_v2_x0_5", 64  # the built-in backbone and the input size it was trained on


class Bounds(NamedTuple):
    """The interval of a number, which is always finite; `config/schema.py` checks it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


MOST = 10**6  # of anything that is counted: more is a slip, and costs time or memory before it is noticed
PositiveInt = Annotated[int, Bounds(at_least=1, at_most=MOST)]
NonNegativeInt = Annotated[int, Bounds(at_least=0, at_most=MOST)]
PositiveFloat = Annotated[float, Bounds(above=0, at_most=1e9)]
NonNegativeFloat = Annotated[float, Bounds(at_least=0, at_most=1e9)]
Fraction = Annotated[float, Bounds(at_least=0, below=1)]
PositiveFraction = Annotated[float, Bounds(above=0, at_most=1)]
ValFraction = Annotated[float, Bounds(above=0, below=1)]
Probability = Annotated[float, Bounds(at_least=0, at_most=1)]
# Alpha of a Beta distribution. torch draws from none whose alpha is so small that it underflows.
Alpha = Annotated[float, Bounds(at_least=1e-3, at_most=1e3)] | Literal[0]
Workers = Annotated[int, Bounds(at_least=-1, at_most=1024)]
LARGEST_SIDE = 8192  # pixels of the network's input


class Rate(NamedTuple):
    """How one depth is trained. A recipe answers `None` for a frozen depth."""

    lr_scale: float
    """Its learning rate as a multiple of `--lr`."""
    start: int = 0
    """The first epoch that trains it."""


@dataclass(frozen=True)
class Net:
    """The network and its initial weights."""

    model: str = "auto"
    """Any of torchvision's 80 classification models. auto: resnet18, or shufflenet_v2_x0_5 on the built-in images."""
    weights: str = "default"
    """default: torchvision's best weights, downloaded once. starter: the built-in backbone's, which --model auto takes
    on the built-in images. none: random. Or a path: a .safetensors or .pth state dict with torchvision's keys, a run's
    folder or its model/ folder."""
    head: Literal["linear", "mlp", "concat_pool"] = "linear"
    """linear: one linear layer. mlp: hidden layers, then a linear layer. concat_pool: average and max pooling
    concatenated, then BatchNorm, dropout and hidden layers (Howard & Gugger 2020)."""
    hidden: Annotated[tuple[Annotated[int, Bounds(at_least=1, at_most=65_536)], ...], Bounds(at_most=16)] = (512,)
    """Widths of the hidden layers of an mlp or concat_pool head."""
    dropout: Fraction = 0.5
    """Dropout probability in an mlp or concat_pool head."""
    head_batchnorm: bool = False
    """Add BatchNorm after each hidden layer of an mlp head."""
    pool_size: Annotated[int, Bounds(at_least=1, at_most=64)] | None = None
    """Pool the last feature map to this many cells per side, and replace all layers after it by the head. None: keep
    the model's own pooling."""
    in_channels: Annotated[int, Bounds(at_least=1, at_most=1024)] = 3
    """Input channels. 1: greyscale; colour files are converted. Other numbers need arrays; the first layer's three
    input channels are repeated in turn."""
    first_layer: Literal["sum", "luma"] = "sum"
    """How the first layer is converted to one channel. sum: add its three input channels, so that a grey image gives
    the activations of its RGB copy. luma: their weighted sum (ITU-R BT.601), a third as strong."""
    image_size: Annotated[int, Bounds(at_least=8, at_most=LARGEST_SIDE)] | None = None
    """Side of the square input in pixels. None: the size the weights were trained with."""


@dataclass(frozen=True)
class Images:
    """The images, augmentation and loading."""

    data: str = "starter"
    """A folder with train/ and val/ (test/ is optional), or one folder of class folders, which is split; a .csv with
    columns path, label and optionally split; an .npz, or a folder of .npy, with x_train and y_train, optionally also
    x_val, y_val, x_test and y_test; a torchvision dataset by name (cifar10, flowers102, …). starter: ten built-in
    classes. starter-source: the images that the built-in backbone was trained on."""
    data_root: Path = field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "finetune/data")
    )
    """Folder of the datasets that are given by name."""
    val_fraction: ValFraction = 0.2
    """Fraction of each class held out for validation, where the data has no validation split, and in each fold."""
    folds: Annotated[int, Bounds(at_least=2, at_most=1000)] | None = None
    """Cross-validation: split the training and validation images into this many stratified folds, and train a run for
    each, which is tested on its fold and trained and validated on the rest. None: one run."""
    fold: PositiveInt | None = None
    """Train the run of this fold of --folds alone. None: all of them."""
    fit: Literal["crop", "squash", "pad"] | None = None
    """How images become square. crop: resize the short side, crop the centre. squash: resize both sides, whatever the
    aspect ratio. pad: resize the long side, pad with the mean colour. It holds in training and is part of the model.
    None: as the weights were trained with, which is crop for torchvision's."""
    augment: Literal["none", "basic", "strong", "rand", "trivial"] = "basic"
    """none: the evaluation transform. basic: random resized crop and the flips of --hflip and --vflip. strong: basic,
    rotation by up to 25 degrees and colour jitter. rand: basic and RandAugment (Cubuk et al. 2020). trivial: basic and
    TrivialAugment (Müller & Hutter 2021). --erase comes last."""
    crop_scale: PositiveFraction | Literal["auto"] = 0.08
    """Smallest area of the random crop, as a fraction of the image; the largest is 1. auto: 0.35, but 0.7 where the
    training images are enlarged to twice their size or more."""
    mixup: Alpha = 0.0
    """Alpha of mixup's Beta distribution (Zhang et al. 2018). 0: no mixup."""
    cutmix: Alpha = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al. 2019). 0: no CutMix. With both, each batch takes one of them at
    random."""
    hflip: bool = True
    """Mirror images at random in augmentation, and add each image's mirror image where a head is solved. Not with
    --augment none."""
    vflip: bool = False
    """Turn images upside down at random, likewise: for images without an up and down, such as those of microscopes. Not
    with --augment none."""
    erase: Probability = 0.0
    """Probability that augmentation erases a rectangle of 2 to 33 % of an image, to the mean colour (Random Erasing,
    Zhong et al. 2020). Not with --augment none."""
    views: Annotated[int, Bounds(at_least=0, at_most=1000)] = 4
    """Augmented versions of each image to cycle through while the first layers are frozen, so that their activations
    can be cached. 0: new augmentation in every epoch, without this cache."""
    balanced: bool = False
    """Sample all classes equally often, with replacement."""
    skip_bad_images: bool = False
    """Skip images that cannot be decoded, and report how many, instead of refusing to start."""
    exclude: Path | None = None
    """A .csv of images to leave out or to label otherwise, as python -m finetune check --fix-list writes it."""
    cache_images: bool = True
    """Cache decoded images in --cache-dir if they are read three times or more and fit into a quarter of the memory and
    into --cache-gb (or 4 GB). Results do not change."""
    workers: Workers = -1
    """Data-loading processes per training process. -1: none on a CPU, up to 8 on a GPU. Results do not change."""


@dataclass(frozen=True)
class Training:
    """Optimization, schedule and early stopping."""

    solver: Literal["auto", "lbfgs", "sgd"] = "auto"
    """How a linear head on frozen, pretrained layers is trained. lbfgs: solved to the optimum of the cross-entropy with
    an L2 penalty, with no learning rate and no epochs; recipes that train more layers start from it, as epoch 0. sgd:
    by gradient steps alone. auto: lbfgs where the head, the loss and the images allow it; the plan says why not."""
    l2: PositiveFloat | None = None
    """Strength of the L2 penalty of a solved head. None: the one with the lowest loss on held-out training images."""
    epochs: PositiveInt = 10
    """Passes over the training images. A solved head needs none."""
    minutes: PositiveFloat | None = None
    """Time budget of the run. Epochs that would not fit, by timing a few images before the start, are left out, and
    the run ends before an epoch that would exceed it. None: no limit."""
    batch_size: PositiveInt = 4
    """Global batch size: images per step, over all processes."""
    accumulate: PositiveInt | Literal["auto"] = 1
    """Gradient-accumulation steps: compute each batch in this many micro-batches, to save memory. auto: begin with one,
    and double them whenever memory runs out. Results do not change, apart from rounding and BatchNorm."""
    eval_batch_size: PositiveInt = 64
    """Images per evaluation batch and process. Results do not change."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """sgd has momentum."""
    lr: Annotated[float, Bounds(above=0, at_most=1000)] | Literal["auto"] = 1e-3
    """Peak learning rate of the head. Each depth's is this times the recipe's lr_scale. auto: 6e-4 times the solved
    head's loss on held-out training images (3e-4 times where the network has no normalisation layers), at least 2e-4
    and at most 1e-3; 2e-4 where nothing was held out."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Bounds(at_least=0, at_most=1000)] = 0.0
    """Weight decay. Biases and normalisation layers have none."""
    schedule: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "step"
    """constant. step: multiply by --step-factor every --step-epochs. cosine: decay to zero at the last step. one_cycle:
    rise from lr/25 over the first 30 % of steps, then decay to zero (Smith 2018). plateau: multiply by --step-factor
    when validation loss has not improved for --step-epochs."""
    step_epochs: PositiveInt = 5
    """Epochs between two reductions of the step schedule; patience of the plateau schedule."""
    step_factor: PositiveFraction = 0.1
    """Factor of each reduction of the step and plateau schedules."""
    warmup: Fraction = 0.0
    """Fraction of all steps with linear warm-up. 0: no warm-up."""
    clip_norm: NonNegativeFloat = 0.0
    """Clip the gradients' global L2 norm to this. 0: no clipping."""
    label_smoothing: Fraction = 0.0
    """Label smoothing (Szegedy et al. 2016). 0: none."""
    class_weights: bool = False
    """Weight the loss by inverse class frequency."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is then evaluated and saved. It warms up over the
    first steps. 0: no average."""
    batchnorm: Literal["auto", "train", "keep"] = "auto"
    """BatchNorm in trained layers that are pretrained. keep: its statistics stay, and its weights are trained. train:
    statistics of each batch, as from random weights. auto: keep, but for many images in large batches."""
    best_by: Literal["accuracy", "loss", "macro_f1", "balanced_accuracy", "auroc"] = "accuracy"
    """Validation metric that selects the best epoch and drives early stopping. macro_f1, balanced_accuracy and auroc
    (one class against the rest) are means over classes, in which a rare class counts as much as a frequent one."""
    interpolate: bool = False
    """At the end, choose among the weights before training (the solved head's network), those after it, and half and
    three quarters of the way between them (WiSE-FT, Wortsman et al. 2022), in place of the best epoch. Of those that
    are no worse by --best-by than the weights before training, and whose validation loss, each at its own temperature,
    is within one standard error of the lowest, the ones nearest to half-way are taken."""
    calibrate: bool = True
    """Fit a temperature on the validation images at the end (Guo et al. 2017) and divide the last layer's weights by
    it. Probabilities then agree better with accuracy; the predicted classes do not change."""
    patience: NonNegativeInt = 0
    """Stop after this many epochs without improvement of --best-by. 0: never."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest change that counts as an improvement, for early stopping."""

    @property
    def loaded_micro_batches(self) -> int:
        """Micro-batches that the loader makes of each batch: `--accumulate`, or 1 where auto splits it later."""
        return 1 if self.accumulate == "auto" else self.accumulate


@dataclass(frozen=True)
class Depths:
    """Which depths are trained, when and how fast; most are options of single recipes."""

    train_depths: tuple[str, ...] | None = None
    """Train these depths alone, of those that the recipe trains, and freeze all others (Lee et al. 2023, surgical
    fine-tuning): stem, head, or a stage's number, as in `stem 3 head`; the plan lists them. The earliest starts at
    once. A solved head that is left out stays as it was solved. None: all that the recipe trains."""
    layers: PositiveInt = 2
    """last_layers: number of depths to train, counted from the head."""
    decay: PositiveFraction = 1.0
    """finetune, layerwise_lr, gradual_unfreeze: factor of the learning rate from each depth to the one before it."""
    floor: Probability = 0.0
    """layerwise_lr: smallest lr_scale of any depth."""
    unfreeze_every: PositiveInt = 2
    """gradual_unfreeze: epochs between unfreezing one depth and the next."""
    head_epochs: NonNegativeInt = 3
    """linear_then_finetune, concat_pool: epochs that train the head alone."""
    body_scale: PositiveFraction = 0.1
    """linear_then_finetune, concat_pool: lr_scale of all depths but the head."""


@dataclass(frozen=True)
class Run:
    """Seed, hardware, caches, checkpoints, logging, and modes without training."""

    seed: Annotated[int, Bounds(at_least=0, below=2**63)] = 0
    """Seed of the head's initial weights, the order of images, augmentation, dropout and random splits."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """no: float32. bf16, fp16: mixed precision. auto: as Accelerate is configured, else bf16 if the hardware has it."""
    channels_last: bool = True
    """Memory format NHWC, which is faster for convolutions on most devices."""
    sync_bn: bool = False
    """Compute BatchNorm's statistics over all GPUs (SyncBatchNorm). Slower."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps on a recent GPU."""
    gradient_checkpointing: bool = False
    """Compute the activations of trained blocks again in the backward pass instead of keeping them (Chen et al. 2016),
    to save memory for about a third more time. Results do not change. Not for VGG and AlexNet, which have no blocks."""
    cache_dir: Path | None = None
    """Folder of cached activations and decoded images, shared by all runs. None: ~/.cache/finetune/features."""
    cache_gb: NonNegativeFloat | None = None
    """Size limit of --cache-dir in GB; the least recently used entries are deleted. 0: no cache. None: half of what the
    cache holds and its disk has free. Results do not change."""
    output: Path | None = None
    """The run's folder, new or empty. None: runs/<recipe>-<time>."""
    resume: bool = False
    """Continue from the last complete checkpoint in --output."""
    checkpoint_every: str = "10m"
    """Write a checkpoint every so many steps (500) or minutes (10m), and at the end of each epoch. 0: at the end of
    epochs only."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep, newest first."""
    tracker: Literal[
        "wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio", "none"
    ] = "wandb"
    """Experiment tracker, besides the run's own files. wandb logs offline if it has no API key or no network. wandb and
    tensorboard also get images; the others get metrics, through Accelerate."""
    project: str = "finetune"
    """The tracker's project."""
    log_every: NonNegativeInt = 10
    """Log loss, gradient norm and images per second to the tracker every so many steps. 0: never."""
    log_model: bool = False
    """Upload the model folder to W&B as an artifact."""
    plan: bool = False
    """Print the plan and stop: nothing is trained or written."""
    json: bool = False
    """Print the plan of --plan as JSON."""
    preview: bool = False
    """Draw augmented training images to plots/augmentations.png and stop."""
    lr_find: bool = False
    """Run a learning-rate range test (Smith 2015), plot it, suggest an --lr and stop."""


@dataclass(frozen=True)
class Recipe:
    """Fine-tune a torchvision image classifier."""

    recipe: str = "feature_extractor"
    """The recipe, which sets the defaults of all other flags."""
    net: Net = field(default_factory=Net)
    images: Images = field(default_factory=Images)
    training: Training = field(default_factory=Training)
    depths: Depths = field(default_factory=Depths)
    run: Run = field(default_factory=Run)


SECTIONS = tuple(section.name for section in fields(Recipe) if section.name != "recipe")
