"""The table of architectures: the stages of each torchvision family, from stem to head.

Depth 0 is the stem and the last depth the head; the stages between are in the order of the forward pass. A stage is a
line of module or parameter paths:

    layer1              this module
    features[2:5]       children 2, 3 and 4 of `features`
    encoder.layers.*    one stage for each child; the rest of the line belongs to the last of them

CNNs have one stage per resolution, transformers one per block (as in BEiT, Bao et al. 2022). Modules outside all lines
have neither parameters nor state; a test checks that for all 80 models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from finetune.config.schema import convert, wrong_values
from finetune.config.settings import LARGEST_SIDE, Bounds
from finetune.errors import UserError, shortened, unknown

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """A row of the table: what the models of a family have in common."""

    models: str
    """torchvision's names, separated by spaces."""
    stages: tuple[str, ...]
    """One line per depth, stem first, head last."""
    head: str
    """The path of the layer that computes the logits."""
    first: str
    """The path of the first convolution."""
    pool: str
    """The path of the pooling of the last feature map; where the model pools in its code, the path at which a new pool
    is added. Empty if there is no such map."""
    tail: str
    """The path of the module that holds all layers after the pool."""
    aux: tuple[str, ...] = ()
    """The paths of the last layers of auxiliary heads."""
    aux_weight: float = 0.0
    """The weight of each auxiliary loss, from the architecture's paper."""
    relu_before_pool: bool = False
    """The model rectifies the map in its code, before its own pooling: a new pool has to do the same."""
    after_head: str = ""
    """The path of an activation after the head, which is replaced by the identity: behind a ReLU a new head can die."""
    size_argument: str = ""
    """The constructor's argument for the input size, if the architecture is built for one size."""
    options: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments."""
    pretrained_options: tuple[tuple[str, Any], ...] = ()
    """Constructor arguments with which torchvision's weights were trained."""
    no_decay: tuple[str, ...] = ()
    """Names of parameters without weight decay, as in the architecture's paper and timm (`no_weight_decay`). Vectors
    never have it."""
    renamed_keys: tuple[str, str] | None = None
    """A (pattern, replacement) for outdated keys of published weights."""
    token_norm: str = ""
    """If the model has tokens and no map: the path, in a block, of the norm before its attention."""


def _blocks(*starts: int) -> tuple[str, ...]:
    """Stages that start at these children of `features`."""
    return tuple(f"features[{a}:{b}]" for a, b in zip(starts, (*starts[1:], ""), strict=True))


def _vgg(models: str, *starts: int) -> Family:
    """VGG: five blocks of convolutions and three linear layers."""
    stages = (*_blocks(*starts), "classifier.0", "classifier[1:4]", "classifier[4:]")
    return Family(models, stages, "classifier.6", "features.0", "avgpool", "classifier")


def _mobilenet_v3(models: str, *starts: int) -> Family:
    stages = (*_blocks(*starts), "classifier.0", "classifier[1:]")
    return Family(models, stages, "classifier.3", "features.0.0", "avgpool", "classifier")


# fmt: off
FAMILIES = (
    Family(
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
        "wide_resnet50_2 wide_resnet101_2",
        ("conv1 bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
        "fc", "conv1", "avgpool", "fc",
    ),
    Family(
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf "
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf",
        ("stem", "trunk_output.*", "fc"),
        "fc", "stem.0", "avgpool", "fc",
    ),
    Family(
        "alexnet",
        ("features[0:3]", "features[3:6]", "features[6:8]", "features[8:10]", "features[10:]", "classifier[0:2]",
         "classifier[2:5]", "classifier[5:]"),
        "classifier.6", "features.0", "avgpool", "classifier",
    ),
    _vgg("vgg11", 0, 3, 6, 11, 16),
    _vgg("vgg11_bn", 0, 4, 8, 15, 22),
    _vgg("vgg13", 0, 5, 10, 15, 20),
    _vgg("vgg13_bn", 0, 7, 14, 21, 28),
    _vgg("vgg16", 0, 5, 10, 17, 24),
    _vgg("vgg16_bn", 0, 7, 14, 24, 34),
    _vgg("vgg19", 0, 5, 10, 19, 28),
    _vgg("vgg19_bn", 0, 7, 14, 27, 40),
    Family(
        "squeezenet1_0",
        ("features[0:3]", "features[3:7]", "features[7:12]", "features[12:]", "classifier"),
        "classifier.1", "features.0", "classifier.pool", "classifier",
        after_head="classifier.2",
    ),
    Family(
        "squeezenet1_1",
        ("features[0:3]", "features[3:6]", "features[6:9]", "features[9:]", "classifier"),
        "classifier.1", "features.0", "classifier.pool", "classifier",
        after_head="classifier.2",
    ),
    Family(
        "densenet121 densenet161 densenet169 densenet201",
        ("features.conv0 features.norm0", "features.denseblock1 features.transition1",
         "features.denseblock2 features.transition2", "features.denseblock3 features.transition3",
         "features.denseblock4 features.norm5", "classifier"),
        "classifier", "features.conv0", "features.pool", "classifier",
        relu_before_pool=True, renamed_keys=(r"(\.denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),
    ),
    Family(
        "googlenet",
        ("conv1 conv2 conv3", "inception3a inception3b",
         "inception4a inception4b inception4c inception4d inception4e", "inception5a inception5b",
         "dropout fc aux1 aux2"),
        "fc", "conv1.conv", "avgpool", "fc",
        aux=("aux1.fc2", "aux2.fc2"), aux_weight=0.3, options=(("aux_logits", True),),
        pretrained_options=(("transform_input", True), ("init_weights", False)),
    ),
    Family(
        "inception_v3",
        ("Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3", "Conv2d_3b_1x1 Conv2d_4a_3x3", "Mixed_5b Mixed_5c Mixed_5d",
         "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e", "Mixed_7a Mixed_7b Mixed_7c", "dropout fc AuxLogits"),
        "fc", "Conv2d_1a_3x3.conv", "avgpool", "fc",
        aux=("AuxLogits.fc",), aux_weight=0.4, options=(("aux_logits", True),),
        pretrained_options=(("transform_input", True), ("init_weights", False)),
    ),
    Family(
        "mobilenet_v2",
        ("features[0:2]", "features[2:4]", "features[4:7]", "features[7:14]", "features[14:18]", "features.18",
         "classifier"),
        "classifier.1", "features.0.0", "features.pool", "classifier",
    ),
    _mobilenet_v3("mobilenet_v3_large", 0, 2, 4, 7, 13, 16),
    _mobilenet_v3("mobilenet_v3_small", 0, 1, 2, 4, 9, 12),
    Family(
        "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
        ("layers[0:8]", "layers.8", "layers.9", "layers[10:12]", "layers[12:14]", "layers[14:]", "classifier"),
        "classifier.1", "layers.0", "layers.pool", "classifier",
    ),
    Family(
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        ("conv1", "stage2", "stage3", "stage4", "conv5", "fc"),
        "fc", "conv1.0", "conv5.pool", "fc",
    ),
    Family(
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
        ("features.*", "classifier"),
        "classifier.1", "features.0.0", "avgpool", "classifier",
    ),
    Family(
        "convnext_tiny convnext_small convnext_base convnext_large",
        ("features.0", "features.1", "features[2:4]", "features[4:6]", "features[6:8] classifier.0", "classifier.2"),
        "classifier.2", "features.0.0", "avgpool", "classifier",
        no_decay=("layer_scale",),
    ),
    Family(
        "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
        ("features.0", "features.1", "features[2:4]", "features[4:6]", "features[6:8] norm", "head"),
        "head", "features.0.0", "avgpool", "head",
        no_decay=("relative_position_bias_table", "logit_scale", "cpb_mlp"),
    ),
    Family(
        "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14",
        ("conv_proj class_token encoder.pos_embedding encoder.dropout", "encoder.layers.* encoder.ln", "heads"),
        "heads.head", "conv_proj", "", "heads",
        size_argument="image_size", no_decay=("class_token", "pos_embedding"), token_norm="ln_1",
    ),
    Family(
        "maxvit_t",
        ("stem", "blocks.*", "classifier[:5]", "classifier.5"),
        "classifier.5", "stem.0.0", "classifier.pool", "classifier",
        size_argument="input_size", no_decay=("relative_position_bias_table",),
    ),
)
# fmt: on

BY_NAME = {name: family for family in FAMILIES for name in family.models.split()}


def find(name: str) -> Family:
    """The family of a torchvision model. Raises `UserError` for an unknown name."""
    if name not in BY_NAME:
        raise unknown("model", name, BY_NAME)
    return BY_NAME[name]


def stages(model: nn.Module, family: Family, head: str | None = None) -> list[list[str]]:
    """The paths of the modules at each depth, stem first, and of parameters that belong to no module at that depth.

    `head` is the path of a head that replaces all layers after the pool, and with them their stages.
    """
    depths: list[list[str]] = []
    for line in family.stages:
        paths: list[list[str]] = [[]]
        for token in line.split():
            if head and re.match(rf"{re.escape(head)}(\.|\[|$)", token):
                continue
            if token.endswith(".*"):
                path = token.removesuffix(".*")
                paths[-1:] = [[f"{path}.{child}"] for child, _ in model.get_submodule(path).named_children()]
            elif sliced := re.fullmatch(r"(.+)\[(\d*):(\d*)\]", token):
                path, start, stop = sliced.groups()
                children = [child for child, _ in model.get_submodule(path).named_children()]
                paths[-1] += [f"{path}.{c}" for c in children[int(start or 0) : int(stop) if stop else None]]
            else:
                paths[-1].append(token)
        depths += [found for found in paths if found or line == family.stages[-1]]
    if head:
        depths[-1].append(head)
    return depths


def parameter_depths(model: nn.Module, depths: list[list[str]]) -> dict[str, int]:
    """The depth of every parameter and buffer, by name. Raises `AssertionError` if one has no depth, or two."""
    of_path = {path: depth for depth, paths in enumerate(depths) for path in paths}
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    found = {}
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:k]) for k in range(1, len(parts) + 1))
        hits = [of_path[prefix] for prefix in prefixes if prefix in of_path]
        assert len(hits) == 1, f"{name} has {len(hits)} depths"
        found[name] = hits[0]
    return found


FITS = {
    "crop": "resized by the short side, then cropped at the centre",
    "squash": "resized to a square, whatever the aspect ratio",
    "pad": "resized by the long side, then padded with the mean colour",
}


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform: make an image square, normalise."""

    resize: Annotated[int, Bounds(at_least=1, at_most=2 * LARGEST_SIDE)]
    """Pixels of the shorter side before the crop."""
    crop: Annotated[int, Bounds(at_least=8, at_most=LARGEST_SIDE)]
    """Side of the square in pixels: the input size."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[Annotated[float, Bounds(at_least=-1e3, at_most=1e3)], ...]
    """Per channel, of values in [0, 1]."""
    std: tuple[Annotated[float, Bounds(at_least=1e-6, at_most=1e3)], ...]
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How an image becomes square, one of `FITS`. The default is torchvision's, and that of older files."""

    @classmethod
    def from_json(cls, saved: Any) -> Preprocess:
        """The transform that `asdict` described. Raises `ValueError` where an entry is missing or wrong."""
        if not isinstance(saved, dict):
            raise ValueError("it is no object")
        try:
            found = cls(**{name: convert(cls, name, value) for name, value in saved.items()})
        except (TypeError, KeyError) as error:
            raise ValueError(f"an entry is missing or unknown: {error}") from error
        for name, value, wanted in wrong_values(found):
            raise ValueError(f"{name} {shortened(repr(value))} must be {wanted}")
        if len(found.mean) != len(found.std):
            raise ValueError("mean and std must be of the same length")
        return found

    def at_size(self, crop: int) -> Preprocess:
        """The transform for another input size, with the same ratio of resize to crop."""
        return replace(self, resize=round(crop * self.resize / self.crop), crop=crop)


def preprocess(name: str) -> Preprocess:
    """The transform of torchvision's best weights of a model."""
    import torchvision

    given = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    if len(given.crop_size) != 1 or len(given.resize_size) != 1:
        raise UserError(f"the transform of {name}'s weights is not square: {given}")
    interpolation = given.interpolation.value
    return Preprocess(given.resize_size[0], given.crop_size[0], interpolation, tuple(given.mean), tuple(given.std))
