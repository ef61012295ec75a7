"""New heads and first layers, on all of torchvision's models."""

import pytest
import torch
import torchvision
from accelerate import init_empty_weights
from torch import nn

from finetune import archs, surgery
from finetune.errors import UserError
from finetune.recipe import Net

MODELS = torchvision.models.list_models(module=torchvision.models)
CLASSES = 7


def outputs(net: Net) -> tuple[nn.Module, list[list[str]], torch.Tensor]:
    """The net on the meta device, its stages, and its logits for two images."""
    with init_empty_weights(include_buffers=False):
        model, preprocess, stages = surgery.build(net, CLASSES)
    model.to("meta").eval()
    images = torch.empty(2, net.in_channels, preprocess.crop, preprocess.crop, device="meta")
    assert len(preprocess.mean) == net.in_channels
    return model, stages, model(images)


FAMILIES = [family.models.split()[0] for family in archs.FAMILIES]


@pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_head_and_first_layer_fits(name):
    family = archs.find(name)
    mlp = Net(model=name, weights="none", head="mlp", hidden=(16, 8), head_batchnorm=True, in_channels=1)
    rich = Net(model=name, weights="none", head="concat_pool", hidden=(16,), in_channels=4)
    pooled = Net(model=name, weights="none", head="linear", pool_size=2)
    for net in (mlp, rich, pooled):
        if not family.pool and net is not mlp:
            with pytest.raises(UserError, match="needs a spatial feature map"):
                outputs(net)
            continue
        model, stages, logits = outputs(net)
        assert logits.shape == (2, CLASSES)
        depths = archs.parameter_depths(model, stages)
        assert set(depths.values()) == set(range(len(stages)))
        linears = [m for path in stages[-1] for m in model.get_submodule(path).modules() if isinstance(m, nn.Linear)]
        assert linears[-1].out_features == CLASSES or family.aux
        assert model.get_submodule(family.first).in_channels == net.in_channels


def test_concat_pool_is_mean_and_maximum_side_by_side():
    model, _, stages = surgery.build(Net("densenet161", "none", head="concat_pool", hidden=(1024,), dropout=0.35), 102)
    layers = [type(layer) for layer in model.classifier]
    assert layers == [nn.Flatten, nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert (model.classifier[3].in_features, model.classifier[3].out_features) == (4416, 1024)
    assert stages[-1] == ["classifier"]
    maps = model.features[:-1](torch.randn(2, 3, 64, 64)).relu()  # (2, 2208, 2, 2)
    pooled = model.features.pool(maps).flatten(1)
    torch.testing.assert_close(pooled, torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


def test_t0s_and_t4s_heads_are_two_settings_of_mlp():
    model, _, _ = surgery.build(Net("resnet50", "none", head="mlp", hidden=(256,), dropout=0.5, head_batchnorm=True), 3)
    assert [type(m) for m in model.fc] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    net = Net("vgg16", "none", head="mlp", hidden=(512, 128), dropout=0.0, pool_size=3, image_size=32)
    model, _, stages = surgery.build(net, 10)
    widths = [(m.in_features, m.out_features) for m in model.classifier if isinstance(m, nn.Linear)]
    assert widths == [(4608, 512), (512, 128), (128, 10)]
    assert stages[-1] == ["classifier"]
    assert len(stages) == 6, "the two old linear layers' depths are gone with them"


def first_layers(name: str, channels: int, how: str = "sum"):
    """The same random net for colour and converted, with heads that say something."""
    nets = []
    for number in (3, channels):
        torch.manual_seed(0)
        model, _, _ = surgery.build(Net(name, "none", in_channels=number, first_layer=how, image_size=64), 5)
        nn.init.normal_(model.get_submodule(archs.find(name).head).weight, generator=torch.Generator().manual_seed(1))
        nets.append(model.eval())
    return nets


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "densenet121", "convnext_tiny", "swin_t", "vgg11_bn"])
def test_a_grey_image_through_the_sum_is_its_copy_in_three_channels(name):
    colour, grey = first_layers(name, 1)
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_luma_is_the_three_channels_fed_in_its_proportion():
    colour, grey = first_layers("resnet18", 1, "luma")
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        copies = image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        torch.testing.assert_close(grey(image), colour(copies), rtol=1e-4, atol=1e-4)


def test_several_channels_cycle_the_three_and_keep_their_strength():
    colour, many = first_layers("resnet18", 6)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(many(image.repeat(1, 2, 1, 1)), colour(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_nets_that_renormalise_inside_do_it_outside_after_a_conversion(name):
    """Pretrained ones read three channels by name; the evaluation transform takes that over."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, init_weights=True, transform_input=True)
    path = archs.find(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    transform = archs.preprocess(name)
    after = surgery.convert_first_layer(model, path, transform, 1, "sum")
    assert model.transform_input is False
    assert (after.mean, after.std) == ((0.5,), (0.5,))
    raw = torch.rand(2, 1, 96, 96)
    plain = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True)
    plain.load_state_dict(before)
    three = (raw.expand(-1, 3, -1, -1) - torch.tensor(transform.mean).view(1, 3, 1, 1)) / torch.tensor(
        transform.std
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        ours, theirs = model.eval()((raw - 0.5) / 0.5), plain.eval()(three)
    scale = theirs.abs().max()  # random weights make large logits
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)
