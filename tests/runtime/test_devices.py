"""Precision (the flag's, else the launcher's, else the hardware's best), synchronised BatchNorm, wrapping, kernels."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support import asks_for_a_gpu, reset_accelerate
from torch import nn

from finetune.errors import UserError
from finetune.runtime import devices
from finetune.training import param_groups


@pytest.fixture
def machine(monkeypatch):
    """A CPU with or without native bf16, and a launcher with or without a precision."""

    def set_up(bf16: bool, launched: str | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
        if launched is None:
            monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        else:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)

    return set_up


def test_auto_is_bf16_where_it_is_native(machine):
    machine(bf16=True)
    assert devices.choose_precision("auto", gpu=False) == ("bf16", "this CPU computes in it natively")
    machine(bf16=False)
    assert devices.choose_precision("auto", gpu=False) == ("no", "this CPU has no native bf16")


def test_the_launchers_precision_overrides_the_hardware_and_the_flag_overrides_both(machine):
    machine(bf16=False, launched="bf16")
    assert devices.choose_precision("auto", gpu=False) == ("bf16", "as Accelerate was launched")
    assert devices.choose_precision("no", gpu=False) == ("no", "as --precision asks")


def test_no_from_the_launcher_is_its_default_and_no_choice(machine):
    machine(bf16=True, launched="no")
    assert devices.choose_precision("auto", gpu=False)[0] == "bf16"
    assert devices.choose_precision("no", gpu=False)[0] == "no"


def test_a_precision_of_the_launcher_that_the_project_does_not_know_is_refused(machine):
    machine(bf16=True, launched="fp8")
    with pytest.raises(UserError, match="launched with mixed precision fp8: use no, bf16 or fp16"):
        devices.choose_precision("auto", gpu=False)


def test_fp16_on_a_cpu_is_refused(machine):
    machine(bf16=True)
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        devices.choose_precision("fp16", gpu=False)
    machine(bf16=True, launched="fp16")
    with pytest.raises(UserError, match="launched with fp16, which needs a GPU"):
        devices.choose_precision("auto", gpu=False)


def test_the_cpu_of_a_gpu_machine_gets_the_precision_of_a_cpu(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as launch/cpu.yaml sets it
    reset_accelerate()
    machine(bf16=False)
    accelerator, words = devices.make_accelerator("auto", "none", tmp_path)
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")
    assert words == "float32 (this CPU has no native bf16)"
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        devices.make_accelerator("fp16", "none", tmp_path)


@pytest.fixture
def tf32():
    """TF32 as torch comes with it, on for convolutions, and for products too; afterwards as it was."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_float32_on_a_gpu_is_not_tf32(monkeypatch, tmp_path, precision):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(devices, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    devices.make_accelerator(precision, "none", tmp_path)
    allowed = precision != "no"
    for settings in (torch.backends.cuda.matmul, torch.backends.cudnn):
        assert settings.allow_tf32 is allowed
    for settings in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):  # torch's newer interface
        assert (settings.fp32_precision == "tf32") is allowed


def test_a_launch_that_did_not_join_its_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "Accelerator", lambda **_: type("A", (), {"num_processes": 1})())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but do not form one run"):
        devices.make_accelerator("no", "none", tmp_path)


@pytest.fixture
def sync_bn_on_a_cpu(monkeypatch):
    """Let `--sync-bn` pass its check of the device."""
    monkeypatch.setattr(devices, "check_sync_batchnorm", lambda device: None)


@pytest.mark.usefixtures("sync_bn_on_a_cpu")
def test_several_processes_with_synchronised_batchnorm_get_their_plan(start):
    run = start("run", "--recipe", "finetune", "--sync-bn", "--plan", processes=2)
    assert run.wait(60) == [0, 0], run.said
    assert "statistics over all processes' images (--sync-bn)" in " ".join(run.said.split())


@pytest.mark.usefixtures("sync_bn_on_a_cpu")
def test_synchronised_batchnorm_is_what_is_trained_and_on_one_process_changes_nothing(train, monkeypatch):
    original, seen = param_groups.make_optimizer, []

    def make_optimizer(network, *rest):
        modules = network.model.modules()
        seen.append({type(module) for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)})
        return original(network, *rest)

    monkeypatch.setattr(param_groups, "make_optimizer", make_optimizer)
    plain, synchronised = (
        load_file(train("--recipe", "finetune", *flags)[1] / "model" / "model.safetensors")
        for flags in ((), ("--sync-bn",))
    )
    assert seen == [{nn.BatchNorm2d}, {nn.SyncBatchNorm}]
    assert synchronised.keys() == plain.keys()
    assert all(torch.equal(synchronised[key], value) for key, value in plain.items())
    assert any(value.any() for key, value in synchronised.items() if key.endswith("running_mean"))


def test_synchronised_batchnorm_on_a_cpu_is_refused(train, capsys):
    assert train("--recipe", "finetune", "--sync-bn", "--plan")[0] == 2
    assert "--sync-bn needs GPUs; this run is on cpu" in capsys.readouterr().err


def test_gpus_are_hidden_from_tests_that_do_not_ask_for_them(pytestconfig):
    asked = pytestconfig.getini("addopts")[-1]
    assert "not gpu" in asked
    assert not asks_for_a_gpu(asked)
    assert not asks_for_a_gpu("slow")
    assert asks_for_a_gpu("gpu")
    assert asks_for_a_gpu("slow or gpu")
    if not asks_for_a_gpu(pytestconfig.option.markexpr):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert not torch.cuda.is_available()


def test_each_thing_that_chooses_kernels_changes_their_description(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    seen = [devices.kernels(cpu), devices.kernels(gpu)]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    seen.append(devices.kernels(cpu))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")
    seen.append(devices.kernels(cpu))
    backends = torch.backends
    for one in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv):
        before = one.fp32_precision
        one.fp32_precision = "tf32" if before == "ieee" else "ieee"
        seen.append(devices.kernels(cpu))
        one.fp32_precision = before
    assert len(seen) == 8
    assert all(one not in seen[:k] for k, one in enumerate(seen))
    assert devices.kernels(cpu) == seen[3]
