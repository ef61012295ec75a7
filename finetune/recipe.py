"""Every setting of a run: its default and its meaning. No other file holds a default; `checks` has the bounds.

A recipe (one file in `finetune/recipes/`) sets what it needs differently and says, for each depth of the network,
whether it is frozen or at which scale of the learning rate it is trained. Each field is a flag of the command line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

STARTER_MODEL, STARTER_SIZE = "shufflenet_v2_x0_5", 64  # the built-in backbone, and the input that it was trained on


class Rate(NamedTuple):
    """How one depth is trained; a frozen depth has `None` in its place."""

    scale: float
    """Its learning rate is this times `--lr`."""
    start: int = 0
    """The epoch at which it starts to be trained."""


@dataclass(frozen=True)
class Net:
    """The network and where its weights come from."""

    model: str = "auto"
    """Any of torchvision's 80 classification models. auto: resnet18, or on the starter set its own small backbone."""
    weights: str = "default"
    """default: torchvision's best (downloaded once); on the starter set its backbone's, which are also called starter.
    none: random. Or a .safetensors or .pth file under torchvision's key names, or the model/ folder of another run."""
    head: Literal["linear", "mlp", "concat_pool"] = "linear"
    """linear: one layer. mlp: hidden layers before it. concat_pool: mean and maximum of the last map side by side, then
    BatchNorm, dropout and hidden layers."""
    hidden: tuple[int, ...] = (512,)
    """Widths of the hidden layers of an mlp or concat_pool head."""
    dropout: float = 0.5
    """Dropout in an mlp or concat_pool head."""
    head_batchnorm: bool = False
    """BatchNorm behind each hidden layer of an mlp head."""
    pool_size: int | None = None
    """Pool the last map to this many cells a side; the head then takes the place of everything behind the map."""
    in_channels: int = 3
    """Channels of the images. 1: grey, from colour files too. Others: for arrays; the weights' three are cycled."""
    first_layer: Literal["sum", "luma"] = "sum"
    """How the first layer takes one channel. sum: right where grey stands for red = green = blue, as in photographs;
    the pretrained net then says what it said of that copy. luma: the channels' weighted mean, a third as strong."""
    image_size: int | None = None
    """Side of the square input in pixels. None: what the weights were trained for; 64 for the starter's backbone."""


@dataclass(frozen=True)
class Images:
    """The images, and how they are fed."""

    data: str = "starter"
    """An image folder with train/ and val/ (test/ is optional), or one folder of class folders, which is split; a .csv
    with the columns path, label and perhaps split; an .npz, or a folder of .npy, with x_train, y_train, x_test, y_test;
    a torchvision set by name (cifar10, flowers102, …).
    starter: the built-in set of ten species; starter-source: the set that its backbone was trained on."""
    data_root: Path = field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "finetune/data")
    )
    """Where sets known by name are, or are downloaded to."""
    val_fraction: float = 0.2
    """Share of each class that becomes the validation split, where one folder of classes is given."""
    augment: Literal["none", "basic", "strong", "rand", "trivial"] = "basic"
    """none: the evaluation transform. basic: random resized crop and horizontal flip. strong: also rotation by up to 25
    degrees and colour jitter. rand: also RandAugment (Cubuk et al. 2020). trivial: also TrivialAugment (Müller &
    Hutter 2021)."""
    crop_scale: float = 0.08
    """Smallest share of the image's area that the random crop may keep (the largest is 1)."""
    mixup: float = 0.0
    """Mix each image with another of its batch, in shares drawn from Beta(this, this) (Zhang et al. 2018). 0: never."""
    cutmix: float = 0.0
    """Paste a part of another image of the batch, likewise (Yun et al. 2019). With both, one of them at random."""
    views: int = 4
    """While the start of the network is frozen: augmented views of each image that are used in turn, epoch by epoch, so
    that what it makes of them can be kept. 0: every epoch draws fresh ones, and nothing of them is kept."""
    balanced: bool = False
    """Draw each class equally often, with replacement, however many images it has."""
    skip_bad_images: bool = False
    """Leave out images that do not decode, and count them, instead of refusing to start."""
    cache_images: bool = True
    """Keep decoded images in --cache-dir where they are needed three times or more and fit: in a quarter of the memory,
    and in --cache-gb or else 4 GB. Results do not change."""
    workers: int = -1
    """Processes that decode images, per training process. -1: none on a CPU, else up to 8. Results do not change."""


@dataclass(frozen=True)
class Training:
    """The optimisation."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 4
    """Global batch: images per update, whatever the number of processes."""
    accumulate: int = 1
    """Parts that the global batch is computed in, one after the other, to save memory."""
    eval_batch_size: int = 64
    """Images per step of evaluation, in each process. Results do not change."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The update rule; sgd is with momentum."""
    lr: float = 1e-3
    """Peak learning rate of the head; each depth's is this times its scale in the recipe."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.0
    """Decay of weight matrices and kernels; biases, norms, layer scale, class tokens and position tables are spared."""
    schedule: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "step"
    """constant; step: times --step-factor every --step-epochs; cosine: down to zero at the last update; one_cycle: up
    from a 25th over the first 30 %, then down to zero (Smith 2018); plateau: times --step-factor whenever validation
    loss has not fallen for --step-epochs."""
    step_epochs: int = 5
    """Epochs between two falls of the step schedule; patience of the plateau schedule."""
    step_factor: float = 0.1
    """Factor of each fall of the step and plateau schedules."""
    warmup: float = 0.0
    """Share of all updates in which the rate first rises linearly from near zero."""
    clip_norm: float = 0.0
    """Scale gradients down to this global L2 norm. 0: never."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes (Szegedy et al. 2016)."""
    class_weights: bool = False
    """Weight each image's loss by how rare its class is, so that all classes weigh the same."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept. 0: none."""
    best_by: Literal["accuracy", "loss"] = "accuracy"
    """Which validation figure chooses the epoch whose weights are kept, and is watched for early stopping."""
    patience: int = 0
    """Stop after this many epochs without a better figure. 0: never."""
    min_delta: float = 0.0
    """By how much a figure must be better to count, for early stopping."""


@dataclass(frozen=True)
class Depths:
    """Which depths are trained, from when and how fast; what each recipe makes of it stands in its docstring."""

    layers: int = 2
    """last_layers: how many depths are trained, counted from the head."""
    decay: float = 1.0
    """layerwise_lr, gradual_unfreeze: each depth's rate is this times the next one's towards the head."""
    floor: float = 0.0
    """layerwise_lr: no depth's rate is below this times the head's."""
    unfreeze_every: int = 2
    """gradual_unfreeze: epochs between one depth's start and the next one's."""
    head_epochs: int = 3
    """linear_then_finetune: epochs in which the head is trained alone."""
    body_scale: float = 0.1
    """linear_then_finetune: the rate of all other depths, once they start, as a share of the head's."""


@dataclass(frozen=True)
class Run:
    """How the run is carried out and what it leaves behind."""

    seed: int = 0
    """Decides the head's first weights, the order of images, every augmentation, dropout, and a random split."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """no: float32. bf16, fp16: mixed precision. auto: what Accelerate was told, else bf16 where the hardware has it."""
    channels_last: bool = True
    """Images as (N, H, W, C) in memory, which convolutions prefer on every recent device. The flag turns it off."""
    sync_bn: bool = False
    """On several GPUs, take BatchNorm's statistics over all of them, as if they were one. Slower."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, faster steps on a recent GPU."""
    cache_dir: Path | None = None
    """Where a frozen start's activations and decoded images are kept, for this run and later ones. None:
    ~/.cache/finetune/features."""
    cache_gb: float | None = None
    """The most that this folder may hold, in GB; what was not used for longest makes room. 0: nothing is kept. None:
    half of what it holds and of what is free on its disk. Results do not change."""
    output: Path | None = None
    """The run's folder, new or empty. None: runs/<recipe>-<time>."""
    resume: bool = False
    """Go on from the newest whole checkpoint of --output, wherever that run was stopped."""
    checkpoint_every: str = "10m"
    """Besides epochs' ends, write a checkpoint after so many updates (500) or minutes (10m). 0: at their ends only."""
    keep_checkpoints: int = 2
    """How many of them are kept, newest first."""
    tracker: Literal[
        "wandb", "tensorboard", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio", "none"
    ] = "wandb"
    """Where metrics go besides the run's own files. wandb works without a key or a network: it then logs offline. The
    others are Accelerate's, set up as each of them is; they get figures, wandb and tensorboard pictures too."""
    project: str = "finetune"
    """The tracker's project, or what it calls so."""
    log_every: int = 10
    """Updates between two that the tracker is told of: loss, gradient norm, images per second. 0: none."""
    log_model: bool = False
    """Put the model folder into W&B as an artifact, its score as metadata."""
    plan: bool = False
    """Print the plan and stop: nothing is trained or written."""
    json: bool = False
    """With --plan: print it as JSON."""
    preview: bool = False
    """Draw plots/augmentations.png and stop."""
    lr_find: bool = False
    """Run the learning-rate range test (Smith 2015), draw it, print the --lr it suggests and stop."""


@dataclass(frozen=True)
class Recipe:
    """Fine-tune a torchvision image classifier."""

    recipe: str = "feature_extractor"
    """The recipe, which sets the defaults of all the rest. See finetune/recipes/."""
    net: Net = field(default_factory=Net)
    images: Images = field(default_factory=Images)
    training: Training = field(default_factory=Training)
    depths: Depths = field(default_factory=Depths)
    run: Run = field(default_factory=Run)
