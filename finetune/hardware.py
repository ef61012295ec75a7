"""The processes, the device and the precision: how this run was launched, and what that hardware does best."""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list, parse_flag_from_env
from torch import nn

from finetune import convolution, launcher, limits
from finetune.errors import UserError

# The libraries' own switches for the kernels that they take: oneDNN's under its names of then and now, MKL's, cuBLAS's.
KERNEL_SWITCHES = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE"),
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)

Value = TypeVar("Value")


def make_accelerator(precision: str, tracker: str, output: Path) -> tuple[Accelerator, str]:
    """The Accelerator for `--precision` and `--tracker`, and the precision in words, with its reason.

    Raises `UserError` where a launch of several processes came out as several runs of one, or where the precision
    cannot be had on this device.
    """
    check_tracker(tracker)
    # A launcher that was told to use the CPU (--cpu, use_cpu: true) passes it on in this variable alone.
    gpu = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    chosen, why = choose_precision(precision, gpu)
    accelerator = Accelerator(
        # Without a GPU, Accelerate joins the processes only when it is told that this is meant.
        cpu=not gpu,
        mixed_precision=chosen,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / tracker)),
    )
    if gpu and chosen == "no":
        turn_off_tf32()
    if not gpu:
        keep_memory()
        if chosen == "bf16" and torch.cpu._is_amx_tile_supported():
            convolution.use_products()
    if accelerator.num_processes > 1:
        # Left to the interpreter's end, gloo's threads can abort a process that has finished before the others.
        atexit.register(accelerator.state.destroy_process_group)
    launcher.check_processes(accelerator.num_processes)
    return accelerator, f"{'float32' if chosen == 'no' else chosen} ({why})"


def from_main(accelerator: Accelerator, work: Callable[[], Value]) -> Value:
    """What `work` returns on the main process, on all processes. What it raises there is raised on all: none waits."""
    value = error = None
    if accelerator.is_main_process:
        try:
            value = work()
        except Exception as raised:
            error = raised
    value, sent = broadcast_object_list([value, _portable(error)])
    if sent is not None:
        raise error or sent
    return value


def _portable(error: Exception | None) -> Exception | None:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # some cannot be pickled, some not be made again
        return RuntimeError(f"{type(error).__name__}: {error}")


def check_tracker(tracker: str) -> None:
    """A `UserError` where the tracker's package is not installed."""
    if tracker == "none":
        return
    if find_spec(tracker) is None:
        raise UserError(f"--tracker {tracker} needs a package that is not here: pip install {tracker}")


def choose_precision(precision: str, gpu: bool) -> tuple[str, str]:
    """`no`, `bf16` or `fp16`, and the reason: what was asked for, else the launcher's, else the hardware's best."""
    if precision == "fp16" and not gpu:
        raise UserError("--precision fp16 needs a GPU: on a CPU it would silently be float32. Use bf16, no or auto.")
    if precision != "auto":
        return precision, "as --precision asks"
    told = launcher.precision()
    if told == "fp16" and not gpu:
        raise UserError("Accelerate was told fp16, which needs a GPU. Launch with --mixed_precision bf16 or no.")
    if told:
        return told, "as Accelerate was told"
    if gpu:
        kind = torch.accelerator.current_accelerator().type
        if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in it natively"
        return "no", f"this {kind} device has no native bf16 that pays"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "this CPU computes in it natively"
    return "no", "this CPU has no native bf16"


def turn_off_tf32() -> None:
    """Let a GPU compute in float32 where that is the precision: cuDNN's convolutions keep 10 bits of 23 by default."""
    torch.set_float32_matmul_precision("highest")
    # The older of torch's two interfaces: it sets the newer one (`fp32_precision`) too. Set by the newer one alone, it
    # raises an error wherever it is read.
    torch.backends.cudnn.allow_tf32 = False


def kernels(device: torch.device) -> dict[str, str | None]:
    """What decides, beside versions and settings, which kernels compute on a device, and so how they round."""
    backends = torch.backends
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": backends.cpu.get_cpu_capability(),
        "cuda matmul": backends.cuda.matmul.fp32_precision,
        "cudnn conv": backends.cudnn.conv.fp32_precision,
        "mkldnn matmul": backends.mkldnn.matmul.fp32_precision,
        "mkldnn conv": backends.mkldnn.conv.fp32_precision,
        **{name: os.environ.get(name) for name in KERNEL_SWITCHES},
    }


def keep_memory() -> None:
    """Let the C library keep large blocks that are freed, for the next layer's activations.

    As it comes, glibc gives each of them back to the system and gets it anew, page by page, all zeros: on a CPU that
    can take a third of the time of a forward pass (`benchmarks.allocator`). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still use: of the GPU's memory, or its share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return limits.memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def anywhere(accelerator: Accelerator, found: bool) -> bool:
    """Whether it is so on any process. All of them take part."""
    flag = torch.tensor(float(found), device=accelerator.device)
    return accelerator.reduce(flag, "sum").item() > 0


def widest(device: torch.device) -> torch.dtype:
    """For sums: float64 where the device is sure to have it, since float32 stops counting at 2^24."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def share_batchnorm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Let BatchNorm take its statistics over all processes' images; a `UserError` on a CPU, where torch cannot."""
    if accelerator.device.type != "cuda":
        raise UserError(f"--sync-bn needs GPUs; this run is on {accelerator.device.type}. Leave it out.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def worker_count(workers: int, device: torch.device) -> int:
    """`--workers`, with -1 as this machine's default: on a CPU the training itself needs every core."""
    if workers >= 0:
        return workers
    if device.type == "cpu":
        return 0
    return min(8, limits.share())
