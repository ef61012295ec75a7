"""A torchvision model for other channels and classes: its first layer, its transform, its shape without values."""

import json

import pytest
import torch
import torchvision
from torch import nn

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import architectures, surgery, weights


def first_layers(name: str, channels: int, how: str = "sum"):
    """The same random network for colour and converted, with random heads."""
    models = []
    for number in (3, channels):
        torch.manual_seed(0)
        model, _, _ = surgery.build(Net(name, "none", in_channels=number, first_layer=how, image_size=64), 5)
        nn.init.normal_(
            model.get_submodule(architectures.find(name).head).weight, generator=torch.Generator().manual_seed(1)
        )
        models.append(model.eval())
    return models


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "squeezenet1_0", "densenet121", "convnext_tiny", "swin_t"),
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
    ],
)
def test_converted_by_sum_a_grey_image_gives_the_logits_of_its_rgb_copy(name):
    colour, grey = first_layers(name, 1)
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_converted_by_luma_it_gives_those_of_a_weighted_copy():
    colour, grey = first_layers("resnet18", 1, "luma")
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        copies = image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        torch.testing.assert_close(grey(image), colour(copies), rtol=1e-4, atol=1e-4)


def test_several_channels_repeat_the_three_at_the_same_strength():
    colour, many = first_layers("resnet18", 6)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(many(image.repeat(1, 2, 1, 1)), colour(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_transform_takes_over_the_normalisation_inside_a_converted_model(name):
    """With torchvision's weights, these models normalise three channels in their code."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, init_weights=True, transform_input=True)
    path = architectures.find(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    transform = architectures.preprocess(name)
    after = surgery.convert_first_layer(model, path, transform, 1, "sum")
    assert model.transform_input is False
    assert (after.mean, after.std) == ((0.5,), (0.5,))
    raw = torch.rand(2, 1, 96, 96)
    plain = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True)
    plain.load_state_dict(before)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    three = (raw.expand(-1, 3, -1, -1) - mean) / std
    with torch.no_grad():
        ours, theirs = model.eval()((raw - 0.5) / 0.5), plain.eval()(three)
    scale = theirs.abs().max()  # random weights make large logits
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)


def test_a_plan_downloads_no_weights(train, monkeypatch, capsys):
    monkeypatch.setattr(weights, "_download", lambda name: pytest.fail(f"the weights of {name} are downloaded"))
    for more in ((), ("--in-channels", "1"), ("--recipe", "last_layers", "--model", "googlenet")):
        code, output = train("--weights", "default", "--plan", "--json", *more)
        plan = json.loads(capsys.readouterr().out)
        assert code == 0
        assert "weights default" in plan["title"]
        assert plan["total_memory"] > 0
        assert not output.exists()


def test_an_empty_pretrained_model_is_built_like_a_full_one(monkeypatch):
    """GoogLeNet has another input normalisation pretrained than with random weights."""
    net = Net(model="googlenet", weights="default", in_channels=1)
    random = torchvision.models.get_model(net.model, weights=None, init_weights=False).state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(weights, "_download", lambda name: random)
        full, transform, stages = surgery.build(net, 5)
    monkeypatch.setattr(weights, "_download", lambda name: pytest.fail(f"the weights of {name} are downloaded"))
    empty, *rest = surgery.build(net, 5, empty=True)
    assert rest == [transform, stages]
    assert transform != surgery.build(Net(model="googlenet", weights="none", in_channels=1), 5, empty=True)[1]
    shapes = {key: value.shape for key, value in full.state_dict().items()}
    assert {key: value.shape for key, value in empty.state_dict().items()} == shapes


def test_a_skeleton_is_the_model_without_memory():
    for settings in ({}, {"head": "concat_pool", "in_channels": 1}, {"head": "mlp", "pool_size": 2}):
        net = Net("resnet18", "none", image_size=64, **settings)
        model, preprocess, _ = surgery.build(net, 3)
        skeleton = surgery.skeleton(net, 3, preprocess).state_dict()
        assert {k: v.shape for k, v in skeleton.items()} == {k: v.shape for k, v in model.state_dict().items()}
        assert all(value.is_meta for key, value in skeleton.items() if key.endswith("weight"))


def test_an_input_size_that_an_architecture_does_not_support_is_an_error():
    with pytest.raises(UserError, match="vit_b_16 cannot be built for images of 50 pixels"):
        surgery.build(Net("vit_b_16", "none", image_size=50), 3, empty=True)
