"""Cores and memory are those that a container or a batch system allows, by control groups of both versions."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import ROOT

from finetune.runtime import cpu, devices

GIB = 2**30
# A group of 2.5 cores and 8 GiB, of which 3 GiB are in use, 1 GiB of them page cache, within one of 6 GiB.
VERSIONS = {
    "v2": (
        "0::/job/step\n",
        {
            "job/step/cpu.max": "250000 100000\n",
            "job/step/memory.max": f"{8 * GIB}\n",
            "job/step/memory.current": f"{3 * GIB}\n",
            "job/step/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
            "job/cpu.max": "max 100000\n",
            "job/memory.max": f"{6 * GIB}\n",
            "job/memory.current": f"{4 * GIB}\n",
            "job/memory.stat": f"inactive_file {GIB}\n",
        },
    ),
    "v1": (
        "5:memory:/job/step\n4:cpu,cpuacct:/job/step\n1:name=systemd:/\n0::/\n",
        {
            "cpu/job/step/cpu.cfs_quota_us": "250000\n",
            "cpu/job/step/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/job/step/memory.limit_in_bytes": f"{8 * GIB}\n",
            "memory/job/step/memory.usage_in_bytes": f"{3 * GIB}\n",
            "memory/job/memory.limit_in_bytes": f"{6 * GIB}\n",
            "memory/job/memory.usage_in_bytes": f"{4 * GIB}\n",
            "memory/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": f"{99 * GIB}\n",
        },
    ),
    "a container that sees the host's path": (
        "0::/docker/1234\n",
        {
            "cpu.max": "250000 100000\n",
            "memory.max": f"{3 * GIB}\n",
            "memory.current": "0\n",
            "memory.stat": "inactive_file 0\n",
        },
    ),
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 16 cores and 64 GiB with these control groups: `machine("0::/\\n", {"cpu.max": "max 100000"})`."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cpu.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(cpu, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def set_up(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text)

    return set_up


@pytest.mark.parametrize("version", VERSIONS)
def test_the_lowest_limit_of_all_enclosing_groups_holds(machine, version, monkeypatch):
    machine(*VERSIONS[version])
    assert (cpu.cores(), cpu.cores_per_process()) == (3, 3)
    assert cpu.memory() == 3 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu.cores() == 3
    assert cpu.cores_per_process() == devices.worker_count(-1, torch.device("cuda")) == 1
    assert devices.free_memory(torch.device("cpu")) == 1.5 * GIB


def test_without_limits_the_machine_is_the_limit(machine, monkeypatch):
    for groups in ((), ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "1"})):
        if groups:
            machine(*groups)
        assert (cpu.cores(), cpu.cores_per_process(), cpu.memory()) == (16, 16, 64 * GIB)
    assert devices.worker_count(-1, torch.device("cuda")) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (cpu.cores(), cpu.cores_per_process()) == (16, 4)
    assert devices.worker_count(-1, torch.device("cuda")) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is bound to cores")
def test_cores_that_a_process_is_bound_to_are_its_own(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cpu.cores() == cpu.cores_per_process() == devices.worker_count(-1, torch.device("cuda")) == 2


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "avx2"])
def test_bf16_is_native_with_avx512_bf16_or_amx(capability, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert cpu.has_bf16() == (capability != "avx2")


def test_a_process_that_has_imported_torch_does_not_fork():
    assert not cpu.can_fork()
    code = "from finetune.runtime import cpu; print(cpu.can_fork())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sys.platform == "linux")


def test_nothing_else_counts_cores_or_memory():
    counts = ("cpu_count", "sched_getaffinity", "virtual_memory")
    texts = {path.name: path.read_text() for path in (ROOT / "finetune").rglob("*.py")}
    assert [name for name, text in texts.items() if any(count in text for count in counts)] == ["cpu.py"]
