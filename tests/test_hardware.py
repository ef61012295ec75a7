"""The precision: what was asked for wins, then what Accelerate was told, then the hardware's best."""

import os
from types import SimpleNamespace

import pytest
import torch
from conftest import asks_for_a_gpu, reset_accelerate
from safetensors.torch import load_file
from torch import nn

from finetune import groups, hardware, launcher
from finetune.errors import UserError


@pytest.fixture
def cpu(monkeypatch):
    """A CPU with or without native bf16, and a launcher that was told something or nothing."""

    def set_up(native: bool, environment: str | None = None, command: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
        monkeypatch.setattr(launcher.psutil, "Process", lambda pid: type("P", (), {"cmdline": lambda self: command})())
        if environment is None:
            monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        else:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)

    return set_up


def test_auto_takes_bf16_where_it_is_native(cpu):
    cpu(native=True)
    assert hardware.choose_precision("auto", gpu=False)[0] == "bf16"
    cpu(native=False)
    assert hardware.choose_precision("auto", gpu=False)[0] == "no"


def test_what_accelerate_was_told_wins_over_the_hardware_and_the_flag_over_both(cpu):
    cpu(native=False, environment="bf16")
    assert hardware.choose_precision("auto", gpu=False) == ("bf16", "as Accelerate was told")
    assert hardware.choose_precision("no", gpu=False)[0] == "no"


def test_the_launchers_default_no_is_nobodys_word(cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    launcher = ("python", "/bin/accelerate", "launch")
    cpu(native=True, environment="no", command=(*launcher, "train.py"))
    assert hardware.choose_precision("auto", gpu=False)[0] == "bf16"
    cpu(native=True, environment="no", command=(*launcher, "--mixed_precision=no", "train.py"))
    assert hardware.choose_precision("auto", gpu=False) == ("no", "as Accelerate was told")
    (tmp_path / "c.yaml").write_text("mixed_precision: 'no'\n")
    cpu(native=True, environment="no", command=(*launcher, "--config_file", str(tmp_path / "c.yaml"), "train.py"))
    assert hardware.choose_precision("auto", gpu=False) == ("no", "as Accelerate was told")
    cpu(native=True, environment="no", command=("bash",))
    assert hardware.choose_precision("auto", gpu=False) == ("no", "as Accelerate was told"), "set by hand"


def test_fp16_on_a_cpu_is_refused(cpu):
    cpu(native=True)
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        hardware.choose_precision("fp16", gpu=False)
    cpu(native=True, environment="fp16")
    with pytest.raises(UserError, match="told fp16"):
        hardware.choose_precision("auto", gpu=False)


def test_the_cpu_of_a_gpu_machine_gets_the_precision_of_a_cpu(cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as launch/cpu.yaml says it
    reset_accelerate()
    cpu(native=False)
    accelerator, words = hardware.make_accelerator("auto", "none", tmp_path)
    assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")
    assert words == "float32 (this CPU has no native bf16)"
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        hardware.make_accelerator("fp16", "none", tmp_path)


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
def test_what_a_gpu_computes_in_float32_it_does_not_compute_in_tf32(monkeypatch, tmp_path, precision):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    hardware.make_accelerator(precision, "none", tmp_path)
    allowed = precision != "no"
    for settings in (torch.backends.cuda.matmul, torch.backends.cudnn):
        assert settings.allow_tf32 is allowed
    for settings in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):  # torch's newer interface
        assert (settings.fp32_precision == "tf32") is allowed


def test_a_launch_that_did_not_join_its_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "Accelerator", lambda **_: type("A", (), {"num_processes": 1})())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but do not form one run"):
        hardware.make_accelerator("no", "none", tmp_path)


@pytest.fixture
def shares_on_a_cpu(monkeypatch):
    """Let `--sync-bn` pass its check of the device."""
    share, gpu = hardware.share_batchnorm, SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(hardware, "share_batchnorm", lambda model, accelerator: share(model, gpu))


@pytest.mark.usefixtures("shares_on_a_cpu")
def test_several_processes_with_shared_batchnorm_get_their_plan(start):
    run = start("run", "--recipe", "finetune", "--sync-bn", "--plan", processes=2)
    assert run.wait(60) == [0, 0], run.said
    assert "statistics are taken over all processes' images (--sync-bn)" in run.said


@pytest.mark.usefixtures("shares_on_a_cpu")
def test_shared_batchnorm_is_what_is_trained_and_on_one_process_changes_nothing(train, monkeypatch):
    original, seen = groups.make_optimizer, []

    def make_optimizer(model, *rest):
        seen.append({type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)})
        return original(model, *rest)

    monkeypatch.setattr(groups, "make_optimizer", make_optimizer)
    plain, shared = (
        load_file(train("--recipe", "finetune", *flags)[1] / "model" / "model.safetensors")
        for flags in ((), ("--sync-bn",))
    )
    assert seen == [{nn.BatchNorm2d}, {nn.SyncBatchNorm}]
    assert shared.keys() == plain.keys()
    assert all(torch.equal(shared[key], value) for key, value in plain.items())
    assert any(value.any() for key, value in shared.items() if key.endswith("running_mean"))


def test_shared_batchnorm_on_a_cpu_is_refused(train, capsys):
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


def test_what_chooses_kernels_is_told_apart(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    seen = [hardware.kernels(cpu), hardware.kernels(gpu)]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    seen.append(hardware.kernels(cpu))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    seen.append(hardware.kernels(cpu))
    backends = torch.backends
    for one in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv):
        before = one.fp32_precision
        one.fp32_precision = "tf32" if before == "ieee" else "ieee"
        seen.append(hardware.kernels(cpu))
        one.fp32_precision = before
    assert len(seen) == 8
    assert all(one not in seen[:k] for k, one in enumerate(seen))
    assert hardware.kernels(cpu) == seen[3]
