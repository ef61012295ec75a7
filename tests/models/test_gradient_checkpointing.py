"""Gradient checkpointing changes what is kept for the backward pass, and nothing that it computes."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from support import metrics
from torch import nn

from finetune import recipes
from finetune.errors import UserError
from finetune.models import architectures, gradient_checkpointing, network
from finetune.training import dropout

SIZES = {"inception_v3": 299, "maxvit_t": 224}
QUICK = ("shufflenet_v2_x0_5", "squeezenet1_1", "densenet121")
WITHOUT_BLOCKS = ("alexnet", "vgg")
SLOW = [
    family.models.split()[0]
    for family in architectures.FAMILIES
    if not family.models.startswith(WITHOUT_BLOCKS) and family.models.split()[0] not in QUICK
]
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def forward_and_backward(model: nn.Module, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """Output, gradients and buffers of a step in training mode, and the bytes that autograd kept outside blocks."""
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    masks = dropout.Masks(model.train(), seed=0)
    masks.at(0, torch.arange(len(images)), len(images))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(images)
    parts = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    sum(part.square().sum() for part in parts).backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {**gradients, **dict(model.named_buffers()), "output": parts[0].detach()}, kept


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_the_same_to_the_bit(name):
    side = SIZES.get(name, 64)
    recipe = recipes.from_settings("scratch", {"model": name, "image_size": side})
    torch.manual_seed(0)
    net = network.build(recipe, classes=5)
    checkpointed = copy.deepcopy(net.model)
    blocks = gradient_checkpointing.blocks(checkpointed, net.stages)
    gradient_checkpointing.enable(blocks)
    assert len(blocks) >= 6
    images = torch.rand(2, 3, side, side)
    plain, kept = forward_and_backward(net.model, images)
    again, less = forward_and_backward(checkpointed, images)
    assert plain.keys() == again.keys()
    assert [key for key in plain if not torch.equal(plain[key], again[key])] == []
    assert less < 0.5 * kept


@pytest.mark.parametrize(
    "flags",
    [
        ("--recipe", "scratch", "--ema", "0.9"),  # BatchNorm with statistics of each batch
        pytest.param(  # phases behind cached activations
            ("--recipe", "gradual_unfreeze", "--unfreeze-every", "1"), marks=pytest.mark.slow
        ),
        ("--recipe", "finetune", "--model", "squeezenet1_1", "--lr", "1e-2", "--accumulate", "2"),  # dropout
    ],
)
def test_a_run_ends_with_the_same_weights(train, flags):
    _, expected = train(*flags)
    code, output = train(*flags, "--gradient-checkpointing")
    assert code == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (expected, output))
    assert one
    assert [name for name, value in one.items() if not torch.equal(other[name], value)] == []
    assert metrics(output) == metrics(expected)


def test_the_blocks_of_a_trained_stage_are_computed_again_and_those_of_a_frozen_one_are_not():
    recipe = recipes.from_settings("last_layers", {"model": "resnet18", "weights": "none", "layers": 2})
    net = network.build(recipe, classes=3)
    calls = []
    for block in gradient_checkpointing.blocks(net.model, net.stages):
        block.register_forward_hook(lambda block, *_: calls.append(block))
    gradient_checkpointing.enable(gradient_checkpointing.blocks(net.model, net.stages))
    net.model(torch.rand(2, 3, 32, 32)).sum().backward()
    once = [net.model.get_submodule(f"layer{stage}.{block}") for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert calls == once
    assert [gradient_checkpointing.is_enabled(block) for block in once] == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "vgg11"}, "--gradient-checkpointing computes blocks again, and vgg11 has none"),
        ({"model": "resnet18", "compile": True}, "--gradient-checkpointing and --compile: choose one"),
    ],
)
def test_it_is_refused_where_it_cannot_work(flags, message):
    recipe = recipes.from_settings("finetune", {"weights": "none", "gradient_checkpointing": True, **flags})
    with pytest.raises(UserError, match=message):
        network.build(recipe, classes=3, empty=True)
