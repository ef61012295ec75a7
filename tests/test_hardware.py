"""The precision: what was asked for wins, then what Accelerate was told, then the hardware's best."""

import pytest
import torch

from finetune import hardware, launcher
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


def test_a_launch_that_did_not_join_its_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "Accelerator", lambda **_: type("A", (), {"num_processes": 1})())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched but do not form one run"):
        hardware.make_accelerator("no", "none", tmp_path)
