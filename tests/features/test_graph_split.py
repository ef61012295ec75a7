"""A network that is split where its frozen part ends computes and trains what the whole one does."""

import copy

import pytest
import torch
from support import FAMILIES
from torch import nn

from finetune.config.settings import Net, Rate
from finetune.errors import UserError
from finetune.features import graph_split
from finetune.models import architectures, surgery
from finetune.models.network import Network

SIZES = {"inception_v3": 299, "alexnet": 64, "maxvit_t": 224}  # the least that these take; else 32
# They take long, or differ little from another.
SLOW = ("vgg11_", "vgg13", "vgg16", "vgg19", "squeezenet1_1", "inception", "vit", "maxvit", "swin")


def build(name: str, last: int | None, size: int | None = None, empty: bool = False):
    """The network on images of `size` with its last depths trained (None: half of them), and its split."""
    torch.manual_seed(0)
    size = size or SIZES.get(name, 32)
    # Without the hundred million weights of the old networks' classifiers.
    pool_size = 1 if name.startswith(("vgg", "alexnet")) else None
    net = Net(model=name, weights="none", image_size=size, pool_size=pool_size)
    model, preprocess, stages = surgery.build(net, 3, empty=True)
    if not empty:
        for path, parameter in list(model.named_parameters()):
            owner, _, attribute = path.rpartition(".")
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            values = torch.empty(parameter.shape).uniform_(-scale, scale)
            setattr(model.get_submodule(owner), attribute, nn.Parameter(values))
    frozen = len(stages) - (last or len(stages) // 2)
    rates = [None if depth < frozen else Rate(1.0) for depth in range(len(stages))]
    network = Network(model, preprocess, stages, rates, architectures.find(name))
    network.set_phase(0)
    return network, graph_split.Splitter(network).find()


def train(model: nn.Module, net: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of two steps; the network may be the model or its suffix."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    seen = []
    for step in range(2):
        torch.manual_seed(step)  # dropout, stochastic depth
        outputs = net(inputs.clone())  # as from a loader: a suffix may begin with dropout in place
        seen += [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        seen[-1].softmax(1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("last", [None, pytest.param(1, marks=pytest.mark.slow)], ids=["half", "head"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith(SLOW) else name for name in FAMILIES]
)
def test_prefix_and_suffix_together_are_the_network_in_training_and_in_evaluation(name, last):
    network, split = build(name, last)
    model = network.model
    assert 0 < split.nodes < len(split.evaluation.nodes)
    other = copy.deepcopy(model)
    size = SIZES.get(name, 32)
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        features = split.prefix(other)(images)
    assert tuple(features.shape[1:]) == split.shape
    for one, two in zip(train(model, model, images), train(other, split.suffix(other, True), features), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    for (key, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=key)
    suffix = split.suffix(other, False).eval()
    with torch.no_grad():
        torch.testing.assert_close(suffix(features.clone()), model.eval()(images), rtol=1e-5, atol=1e-6)
    network.set_phase(0)
    trained = {id(p) for p in other.parameters() if p.requires_grad}
    assert trained <= {id(p) for p in split.suffix(other, True).parameters()}, "the suffix trains the model's own"


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "resnet18")]
)
def test_weights_that_are_cast_beforehand_give_what_autocast_gives_to_the_bit(name):
    network, split = build(name, 1)
    model = network.model
    prefix, before = split.prefix(model), copy.deepcopy(model.state_dict())
    held = graph_split.cast(prefix, torch.bfloat16)
    layers = [module for module in held.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    assert layers
    assert all(parameter.dtype == torch.bfloat16 for layer in layers for parameter in layer.parameters())
    size = SIZES.get(name, 32)
    images = torch.randn(4, 3, size, size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(held(images), prefix(images))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == before[key].dtype for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.BY_NAME)
def test_every_model_can_be_split(name):
    for last in (1, None):
        size = surgery.build(Net(model=name, weights="none"), 3, empty=True)[1].crop
        net, split = build(name, last, size, empty=True)
        half = graph_split.Splitter(net).flops / 2 if last and not architectures.find(name).aux else 0
        assert split.prefix_flops > half


def test_the_split_moves_back_with_what_is_frozen():
    modules = {last: build("resnet18", last)[1].module for last in (1, 2, 3, 4, 5)}
    assert modules == {1: "flatten", 2: "layer3.1.relu", 3: "layer2.1.relu", 4: "layer1.1.relu", 5: "maxpool"}
    assert build("resnet18", 6)[1] is None, "nothing is frozen"


def test_randomness_in_training_lies_behind_the_split():
    """SqueezeNet's head begins with dropout; EfficientNet's stages hold stochastic depth, which is off while frozen."""
    assert build("squeezenet1_0", 1)[1].module.startswith("features.12.")
    network, split = build("efficientnet_b0", 2)
    assert split.module.startswith("features.7.")
    network.model.features[2][1].stochastic_depth.train()
    assert graph_split.Splitter(network).find().module.startswith("features.2.0.")


def test_a_batchnorm_in_training_mode_lies_behind_the_split():
    network, _ = build("resnet18", 1)
    network.model.layer2[0].bn1.train()
    assert graph_split.Splitter(network).find().module == "layer1.1.relu"


def test_the_digest_tells_weights_settings_and_modules_apart():
    network, split = build("resnet18", 1)
    model = network.model
    first = graph_split.digest(split.prefix(model))
    assert graph_split.digest(split.prefix(copy.deepcopy(model))) == first
    model.fc.weight.data.add_(1.0)  # not in the prefix
    assert graph_split.digest(split.prefix(model)) == first
    changed = copy.deepcopy(model)
    changed.layer1[0].bn1.running_mean[0] += 1e-6
    assert graph_split.digest(split.prefix(changed)) != first
    changed = copy.deepcopy(model)
    changed.layer1[0].bn1.eps = 1e-3
    assert graph_split.digest(split.prefix(changed)) != first
    assert graph_split.digest(build("resnet18", 2)[1].prefix(model)) != first


def test_images_that_are_too_small_for_the_network_are_a_mistake():
    with pytest.raises(UserError, match="--image-size 8: this network does not take it"):
        build("squeezenet1_1", last=1, size=8, empty=True)
