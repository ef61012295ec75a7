"""Frozen means frozen, bit for bit, BatchNorm included."""

import pytest
import torch
from accelerate import Accelerator
from conftest import metrics, reset_accelerate
from torch import nn

from finetune import archs, freezing, surgery
from finetune.recipe import Net, Rate


def build():
    torch.manual_seed(0)
    model, _ = surgery.build(Net(model="resnet18", weights="none"), 3)[:2]
    return model, archs.stages(model, archs.find("resnet18"))


def test_frozen_depths_ask_for_no_gradient_and_stay_in_evaluation_mode():
    model, stages = build()
    freezing.set_phase(model, stages, [None] * 4 + [Rate(0.1), Rate(1.0)], epoch=0)
    depths = archs.parameter_depths(model, stages)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (depths[name] >= 4)
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    for path, module in norms:
        assert module.training == path.startswith("layer4")


def test_a_depth_starts_at_its_epoch():
    model, stages = build()
    rates = [None, None, None, None, Rate(0.1, start=2), Rate(1.0)]
    for epoch, expected in ((0, False), (1, False), (2, True), (3, True)):
        freezing.set_phase(model, stages, rates, epoch)
        assert model.layer4[0].conv1.weight.requires_grad is expected
        assert model.layer4[0].bn1.training is expected
        assert not model.layer3[0].bn1.training


def test_after_training_frozen_parameters_and_buffers_are_bit_for_bit_what_was_loaded(train, tmp_path):
    from safetensors.torch import load_file, save_file

    for name, head in (("shufflenet_v2_x0_5", "fc."), ("resnet18", "fc.")):
        torch.manual_seed(1)
        model, _ = surgery.build(Net(model=name, weights="none"), 3)[:2]
        for module in model.modules():  # statistics that a single batch in training mode would move
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
        loaded = model.state_dict()
        save_file({key: value.contiguous() for key, value in loaded.items()}, tmp_path / f"{name}.safetensors")
        code, output = train("--model", name, "--weights", str(tmp_path / f"{name}.safetensors"), "--epochs", "1")
        assert code == 0
        after = load_file(output / "model" / "model.safetensors")
        assert after.keys() == loaded.keys()
        frozen = [key for key in loaded if not key.startswith(head)]
        assert sum("running_mean" in key for key in frozen) >= 20
        for key in frozen:
            assert torch.equal(after[key], loaded[key]), key
        assert not torch.equal(after[f"{head}weight"], loaded[f"{head}weight"])


def test_a_net_that_is_wrapped_again_computes_in_the_same_precision():
    reset_accelerate()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    net, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for _ in range(3):
        wrapped = freezing.wrap(accelerator, net)
        assert wrapped(torch.zeros(2, 3, 8, 8)).dtype == torch.float32
    assert seen == [torch.bfloat16] * 3
    assert "forward" not in vars(net), "the net itself stays as it was"


@pytest.mark.parametrize("flags", [("--views", "0"), ("--mixup", "0.5"), ("--cutmix", "1"), ("--cache-gb", "0")])
def test_a_run_in_bf16_is_in_bf16_in_every_phase_and_resumes_in_it(train, monkeypatch, flags):
    build, seen = surgery.build, []

    def watched(*arguments):
        model, *rest = build(*arguments)

        def note(module, inputs, output):
            if torch.is_grad_enabled() and output.device.type == "cpu":  # a training step, not the plan's
                seen.append(output.dtype)

        model.conv1[0].register_forward_hook(note)
        return model, *rest

    monkeypatch.setattr(surgery, "build", watched)
    flags = ("--recipe", "linear_then_finetune", "--head-epochs", "1", "--precision", "bf16", *flags)
    flags = (*flags, "--schedule", "constant")
    _, whole = train(*flags)
    assert seen == [torch.bfloat16] * 4, "two epochs of two steps"
    _, run = train(*flags, "--epochs", "1")
    assert train(*flags, "--resume", "--output", str(run))[0] == 0
    assert metrics(run) == metrics(whole)
