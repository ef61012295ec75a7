"""The table of architectures holds for all of torchvision's classification models."""

import pytest
import torch
import torchvision
from accelerate import init_empty_weights
from support import FAMILIES, MODELS, build_empty
from torch import nn

from finetune.errors import UserError
from finetune.models import architectures

CLASSES = 7


def test_the_table_names_torchvisions_models_and_no_others():
    assert len(MODELS) == 80
    assert sorted(architectures.BY_NAME) == MODELS


@pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_depths_follow_the_forward_pass_and_the_head_has_torchvisions_shape(name):
    model, preprocess = build_empty(name)
    family = architectures.find(name)
    stages = architectures.stages(model, family)
    depths = architectures.parameter_depths(model, stages)  # asserts that each has exactly one
    assert set(depths) == {n for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert set(depths.values()) == set(range(len(stages)))
    assert len(stages) >= 4

    # The head alone at the last depth: its layer, and the auxiliary heads where there are any.
    heads = (family.head, *(path.split(".")[0] for path in family.aux))
    for key, depth in depths.items():
        assert (depth == len(stages) - 1) == key.startswith(heads), key

    # Depths do not decrease along the forward pass (auxiliary heads branch off in the middle).
    branches = tuple(path.split(".")[0] for path in family.aux)
    order = []
    for path, module in model.named_modules():
        leaf = next(module.children(), None) is None and next(module.parameters(), None) is not None
        if leaf and not (branches and path.startswith(branches)):
            module.register_forward_hook(lambda *_, path=path: order.append(path))
    images = torch.empty(2, 3, preprocess.crop, preprocess.crop, device="meta")
    assert model.eval()(images).shape == (2, CLASSES)
    passed = [depths[f"{path}.{next(n for n, _ in model.get_submodule(path).named_parameters())}"] for path in order]
    assert len(passed) >= 8
    assert passed == sorted(passed)

    # Modules that are random or have statistics belong to a depth, so that freezing reaches them.
    prefixes = tuple(f"{path}." for paths in stages for path in paths)
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm | torchvision.ops.StochasticDepth):
            assert f"{path}.".startswith(prefixes), path

    outputs = model.train()(images)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    assert [tuple(output.shape) for output in outputs] == [(2, CLASSES)] * (1 + len(family.aux))

    # The state dict fits the plain torchvision model whose last layer was replaced by hand.
    with init_empty_weights(include_buffers=False):
        options = dict(family.options) | ({"init_weights": False} if family.aux else {})
        if family.size_argument == "image_size":
            options["image_size"] = preprocess.crop
        plain = torchvision.models.get_model(name, weights=None, **options)
        for path in (family.head, *family.aux):
            parent, _, last = path.rpartition(".")
            old = plain.get_submodule(path)
            squeezenet = isinstance(old, nn.Conv2d)
            new = nn.Conv2d(512, CLASSES, kernel_size=1) if squeezenet else nn.Linear(old.in_features, CLASSES)
            setattr(plain.get_submodule(parent), last, new)
    plain.to("meta").load_state_dict(model.state_dict(), strict=True, assign=True)


def test_wrong_name_gets_the_nearest_ones():
    with pytest.raises(UserError, match=r"unknown model 'resnet-50'. Did you mean .*resnet50"):
        architectures.find("resnet-50")


def test_a_parameter_without_a_depth_is_an_error():
    model, _ = build_empty("resnet18")
    stages = architectures.stages(model, architectures.find("resnet18"))
    with pytest.raises(AssertionError, match=r"layer4\S+ has 0 depths"):
        architectures.parameter_depths(model, [paths for paths in stages if paths != ["layer4"]])
    with pytest.raises(AssertionError, match=r"layer4\S+ has 2 depths"):
        architectures.parameter_depths(model, [*stages, ["layer4.0"]])


def test_squeezenet_has_no_activation_after_its_head():
    for name in ("squeezenet1_0", "squeezenet1_1"):
        model, _ = build_empty(name)
        assert isinstance(model.classifier[2], nn.Identity)
        assert [type(layer) for layer in model.classifier][1:] == [nn.Conv2d, nn.Identity, nn.AdaptiveAvgPool2d]
