"""Parameter groups: each parameter once, at its depth's rate, decayed only where it should be."""

import pytest
import torch
from support import MODELS, build_empty, build_network
from torch import nn

from finetune.config.settings import Rate, Training
from finetune.models import architectures
from finetune.models.network import Network
from finetune.training import param_groups


def test_every_trained_parameter_is_in_exactly_one_group_and_frozen_ones_in_none():
    network = build_network([None, Rate(0.1), Rate(0.2), Rate(0.4), Rate(0.8), Rate(1.0)])
    model, made = network.model, param_groups.parameter_groups(network, weight_decay=0.05)
    placed = [id(parameter) for group in made for parameter in group["params"]]
    frozen = {id(parameter) for parameter in model.conv1.parameters()}
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(parameter) for parameter in model.parameters()} - frozen
    assert [group["lr_scale"] for group in made] == sorted((group["lr_scale"] for group in made), reverse=True)


def test_biases_and_norms_are_spared_from_decay():
    network = build_network([Rate(1.0)] * 6)
    model, made = network.model, param_groups.parameter_groups(network, weight_decay=0.05)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    spared = {id(parameter) for group in made if group["weight_decay"] == 0 for parameter in group["params"]}
    decayed = {id(parameter) for group in made if group["weight_decay"] == 0.05 for parameter in group["params"]}
    assert spared == norms | {id(model.fc.bias)}
    assert spared | decayed == {id(parameter) for parameter in model.parameters()}


SPARED = {  # with several axes, by module
    "CNBlock": {"layer_scale"},
    "ShiftedWindowAttention": {"relative_position_bias_table"},
    "ShiftedWindowAttentionV2": {"logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight"},
    "RelativePositionalMultiHeadAttention": {"relative_position_bias_table"},
    "VisionTransformer": {"class_token"},
    "Encoder": {"pos_embedding"},
}


@pytest.mark.slow
def test_of_all_models_decay_falls_on_kernels_and_matrices_alone():
    seen, spared_kinds = 0, set()
    for name in MODELS:
        model, preprocess = build_empty(name)
        family = architectures.find(name)
        stages = architectures.stages(model, family)
        network = Network(model, preprocess, stages, [Rate(1.0)] * len(stages), family)
        made = param_groups.parameter_groups(network, weight_decay=0.05)
        decayed = {id(p) for group in made if group["weight_decay"] for p in group["params"]}
        expected = {id(p) for path, p in model.named_parameters() if p.ndim > 1 and path.endswith("weight")}
        for module in model.modules():
            for path, parameter in module.named_parameters():
                if path in SPARED.get(type(module).__name__, ()):
                    expected.discard(id(parameter))
                    spared_kinds.add((type(module).__name__, path))
        assert decayed == expected, name
        seen += 1
    assert seen == 80
    assert len(spared_kinds) == sum(map(len, SPARED.values()))


def test_each_depths_step_is_its_scale_times_the_gradient():
    rates = [Rate(0.5 ** (5 - depth)) for depth in range(6)]
    network = build_network(rates)
    model, depths = network.model, network.depths()
    training = Training(optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    optimizer = param_groups.make_optimizer(network, training)
    param_groups.set_rates(optimizer, training.lr)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    nn.init.normal_(model.fc.weight)
    before["fc.weight"] = model.fc.weight.detach().clone()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.1 * rates[depths[name]].lr_scale * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.fixture
def unwritten_memory_is_nan():
    """What a test reads of memory that nobody wrote is then the same each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_a_first_step_that_the_scaler_skips_leaves_no_trace(optimizer, start):
    """The gradients overflow in the first step that a depth takes; without a scaler that step is left out."""
    training = Training(optimizer=optimizer, lr=0.1)

    def trained(enabled):
        scaler, rates = torch.amp.GradScaler("cpu", 4.0, enabled=enabled), [Rate(1.0), Rate(1.0)]
        model = nn.ParameterDict({name: nn.Parameter(torch.ones(2, 2)) for name in ("stem", "head")})
        network = Network(model, None, [["stem"], ["head"]], rates, architectures.find("resnet18"))
        made = param_groups.make_optimizer(network, training, scaler if enabled else None)
        for step in range(start + 3):
            overflows = step == start
            if overflows and not enabled:
                continue
            model["stem"].requires_grad_(step >= start)
            loss = sum(value.square().sum() for value in model.values()) * (torch.inf if overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.step(made)
            scaler.update()
            made.zero_grad()
        return model

    scaled, plain = trained(True), trained(False)
    for name in ("stem", "head"):
        assert (plain[name] < 1).all()
        torch.testing.assert_close(scaled[name], plain[name])
