"""New heads on all of torchvision's models."""

import pytest
import torch
from accelerate import init_empty_weights
from support import FAMILIES, MODELS
from torch import nn

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import architectures, surgery

CLASSES = 7


def outputs(net: Net) -> tuple[nn.Module, list[list[str]], torch.Tensor]:
    """The model on the meta device, its stages, and its logits for two images."""
    with init_empty_weights(include_buffers=False):
        model, preprocess, stages = surgery.build(net, CLASSES)
    model.to("meta").eval()
    images = torch.empty(2, net.in_channels, preprocess.crop, preprocess.crop, device="meta")
    assert len(preprocess.mean) == net.in_channels
    return model, stages, model(images)


QUICK = {*FAMILIES} - {"maxvit_t"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_head_and_first_layer_fits(name):
    family = architectures.find(name)
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
        depths = architectures.parameter_depths(model, stages)
        assert set(depths.values()) == set(range(len(stages)))
        assert model.get_submodule(family.first).in_channels == net.in_channels


def test_concat_pool_concatenates_average_and_max_pooling():
    model, _, stages = surgery.build(Net("densenet161", "none", head="concat_pool", hidden=(1024,), dropout=0.35), 102)
    layers = [type(layer) for layer in model.classifier]
    assert layers == [nn.Flatten, nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert (model.classifier[3].in_features, model.classifier[3].out_features) == (4416, 1024)
    assert stages[-1] == ["classifier"]
    maps = model.features[:-1](torch.randn(2, 3, 64, 64)).relu()  # (2, 2208, 2, 2)
    pooled = model.features.pool(maps).flatten(1)
    torch.testing.assert_close(pooled, torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


def test_an_mlp_replaces_the_last_layer_or_with_a_pool_size_all_after_the_map():
    model, _, _ = surgery.build(Net("resnet50", "none", head="mlp", hidden=(256,), dropout=0.5, head_batchnorm=True), 3)
    assert [type(m) for m in model.fc] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]
    net = Net("vgg16", "none", head="mlp", hidden=(512, 128), dropout=0.0, pool_size=3, image_size=32)
    model, _, stages = surgery.build(net, 10)
    widths = [(m.in_features, m.out_features) for m in model.classifier if isinstance(m, nn.Linear)]
    assert widths == [(4608, 512), (512, 128), (128, 10)]
    assert stages[-1] == ["classifier"]
    assert len(stages) == 6, "the depths of the two replaced linear layers are gone"


@pytest.mark.parametrize("settings", [{}, {"head": "mlp"}, {"head": "concat_pool"}, {"pool_size": 2}])
def test_a_new_head_gives_all_classes_the_same_logit(settings):
    net = Net("squeezenet1_1", "none", hidden=(8,), image_size=64, **settings)
    model, _, _ = surgery.build(net, CLASSES)
    assert not model.eval()(torch.randn(2, 3, 64, 64)).any()
