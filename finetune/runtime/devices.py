"""The device, the processes and the precision of a run."""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, broadcast_object_list, parse_flag_from_env
from torch import nn

from finetune.errors import UserError
from finetune.runtime import cpu, launcher

# Environment variables that change the kernels of oneDNN (also under its old name), MKL and cuBLAS.
KERNEL_SWITCHES = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE"),
)
PRECISIONS = ("no", "bf16", "fp16")  # Accelerate's, but for fp8
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)

Value = TypeVar("Value")


def make_accelerator(precision: str, tracker: str, output: Path, resumed: str | None = None) -> tuple[Accelerator, str]:
    """The Accelerator for `--precision` and `--tracker`, and the precision in words, with its reason.

    `resumed` is the mixed precision of the run that is resumed. Raises `UserError` where several launched processes did
    not join into one run, where the device lacks the precision, and where the tracker's package is not installed.
    """
    check_tracker(tracker)
    # The launcher's --cpu and use_cpu: true arrive in this variable only.
    gpu = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    chosen, reason = choose_precision(precision, gpu, resumed)
    try:
        accelerator = Accelerator(
            # Without a GPU, Accelerate joins the processes only with cpu=True.
            cpu=not gpu,
            mixed_precision=chosen,
            log_with=None if tracker == "none" else tracker,
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / tracker)),
        )
    except ValueError as error:  # the launcher's variables do not go together
        raise UserError(f"Accelerate cannot start as launched: {str(error).splitlines()[0]} {launcher.CURE}") from error
    if gpu and chosen == "no":
        turn_off_tf32()
    if not gpu:
        keep_memory()
    if accelerator.num_processes > 1:
        # At the interpreter's end, gloo's threads can abort a process that finishes before the others.
        atexit.register(accelerator.state.destroy_process_group)
    launcher.check_processes(accelerator.num_processes)
    return accelerator, f"{'float32' if chosen == 'no' else chosen} ({reason})"


def check_tracker(tracker: str) -> None:
    """Raise `UserError` where the tracker's package is not installed."""
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(f"--tracker {tracker} needs a package that is not installed: pip install {tracker}")


def choose_precision(precision: str, gpu: bool, resumed: str | None = None) -> tuple[str, str]:
    """`no`, `bf16` or `fp16`, and the reason: that of `--precision`, the launcher, the `resumed` run, or the hardware.

    Accelerate's launcher passes on `no` by default too, so `no` from there is no choice.
    """
    if precision == "fp16" and not gpu:
        raise UserError("--precision fp16 needs a GPU: on a CPU it would silently be float32. Use bf16, no or auto.")
    if precision != "auto":
        return precision, "as --precision asks"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in PRECISIONS:
        raise UserError(f"Accelerate was launched with mixed precision {launched}: use no, bf16 or fp16.")
    if launched == "fp16" and not gpu:
        raise UserError("Accelerate was launched with fp16, which needs a GPU. Use --mixed_precision bf16 or no.")
    if launched != "no":
        return launched, "as Accelerate was launched"
    if resumed and (gpu or resumed != "fp16"):
        return resumed, "as the run began"
    if gpu:
        kind = torch.accelerator.current_accelerator().type
        if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in it natively"
        return "no", f"this {kind} device has no native bf16 that pays"
    if cpu.has_bf16():
        return "bf16", "this CPU computes in it natively"
    return "no", "this CPU has no native bf16"


def turn_off_tf32() -> None:
    """Let a GPU compute in float32 where that is the precision: cuDNN's convolutions keep 10 bits of 23 by default."""
    torch.set_float32_matmul_precision("highest")
    # The older of torch's two interfaces: it sets the newer one (`fp32_precision`) too. Set by the newer one alone, it
    # raises an error wherever it is read.
    torch.backends.cudnn.allow_tf32 = False


def keep_memory() -> None:
    """Let glibc keep large blocks that are freed, for the next layer's activations (mallopt(3)).

    By default glibc returns each of them to the system, which then zeroes every page of the next one: on a CPU that can
    take a third of a forward pass (`benchmarks.allocator`). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still use: of the GPU's memory, or an equal part of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return cpu.memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def worker_count(workers: int, device: torch.device) -> int:
    """`--workers`, with -1 as this machine's default: on a CPU the training itself needs every core."""
    if workers >= 0:
        return workers
    return 0 if device.type == "cpu" else min(8, cpu.cores_per_process())


def wrap(accelerator: Accelerator, model: nn.Module, compiled: bool = False, ddp: bool = True) -> nn.Module:
    """Prepare a model (autocast, DDP) for the gradients that it now asks for; in each phase anew. Collective.

    DDP decides at its construction which gradients it exchanges: a parameter that is unfrozen under an old wrapper
    silently diverges between processes. The optimizer stays, since the parameters do. Without `ddp` the caller
    exchanges the gradients (`average_gradients`).
    """
    accelerator._models.clear()  # private; without it the old wrapper and its hooks stay alive
    # Accelerate patches autocast into the forward of the module that it prepares, and returns a prepared module
    # unchanged. A fresh container each time leaves the model itself as it is.
    wrapped = accelerator.prepare_model(nn.Sequential(model), evaluation_mode=not ddp)
    if not ddp and accelerator.num_processes > 1:
        for tensor in model.state_dict().values():  # all begin with the main process's, as under DDP
            tensor.copy_(broadcast(tensor.contiguous()))
    if compiled:
        model.compile()  # in place: the wrapper, the keys of the state dict and the hooks stay what they are
    return wrapped


def check_sync_batchnorm(device: torch.device) -> None:
    """Raise `UserError` on a CPU, where torch has no synchronised BatchNorm."""
    if device.type != "cuda":
        raise UserError(f"--sync-bn needs GPUs; this run is on {device.type}. Leave it out.")


@contextmanager
def local_main_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block on each machine's main process first, then on the others: one download for all. Collective.

    What it raises on the main process it raises on the others too, unlike under Accelerate's context manager, where
    they wait until their connection is lost.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def from_main(accelerator: Accelerator, work: Callable[[], Value]) -> Value:
    """What `work` returns on the main process, on all processes. What it raises there is raised on all. Collective."""
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


def anywhere(accelerator: Accelerator, found: bool) -> bool:
    """Whether `found` is true on any process. Collective."""
    if accelerator.num_processes == 1:
        return found
    flag = torch.tensor(float(found), device=accelerator.device)
    return accelerator.reduce(flag, "sum").item() > 0


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over all processes, in place, as DDP does. Collective."""
    if accelerator.num_processes > 1:
        gradients = [p.grad.div_(accelerator.num_processes) for p in parameters if p.grad is not None]
        for exchange in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            exchange.wait()


def _portable(error: Exception | None) -> Exception | None:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # some exceptions cannot be pickled, others not unpickled
        return RuntimeError(f"{type(error).__name__}: {error}")


def kernels(device: torch.device) -> dict[str, str | None]:
    """What chooses the kernels on a device, and so their rounding, besides versions and settings."""
    backends = torch.backends
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": backends.cpu.get_cpu_capability(),
        "cuda matmul": backends.cuda.matmul.fp32_precision,
        "cudnn conv": backends.cudnn.conv.fp32_precision,
        "mkldnn matmul": backends.mkldnn.matmul.fp32_precision,
        "mkldnn conv": backends.mkldnn.conv.fp32_precision,
        **{name: os.environ.get(name) for name in KERNEL_SWITCHES},
    }
