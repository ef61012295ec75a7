"""Helpers of the tests: small image folders, and train.py in processes of its own."""

import atexit
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small networks lose time to threads

import numpy as np
import pytest
import torch
import torchvision
from accelerate import init_empty_weights
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import nn

from finetune.config.settings import Net, Rate
from finetune.models import architectures, metadata, model_folder, surgery
from finetune.models.network import Network
from finetune.training.interrupts import Interrupts

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
ROOT = Path(__file__).parent.parent
CACHE = tempfile.mkdtemp(prefix="finetune-tests-")
OWNER = os.getpid()  # forked processes leave it alone
atexit.register(lambda: os.getpid() == OWNER and shutil.rmtree(CACHE, ignore_errors=True))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}
CLASSES = ("blue", "green", "red")


def asks_for_a_gpu(marks: str) -> bool:
    """Whether pytest's `-m` selects the tests that need a GPU."""
    return re.search(r"(?<!not )\bgpu\b", marks) is not None


def write_images(folder: Path, per_class: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Write noisy JPEGs of about 40 pixels, a folder per class. A class has one channel that is slightly brighter."""
    random = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = random.integers(0, 160, (40 + k % 5, 44, 3))
            pixels[..., 2 - label % 3] += random.integers(10, 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{k:02}.jpg", quality=90)


def restore_signals() -> None:
    """Restore the signal handlers from before the tests, and forget signals that nothing has stopped for."""
    Interrupts.pending = ""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


def reset_accelerate() -> None:
    """Reset Accelerate's shared state, which an earlier test has set."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    GradientState._reset_state()


class Started:
    """train.py in processes of its own, forked from this one, which has imported torch."""

    def __init__(
        self, output: Path, data: Path, flags: list[str], processes: int, prepare: Callable[[int], object] | None = None
    ) -> None:
        """`prepare` is called in each process with its rank, before train.py."""
        self.prepare = prepare
        self.output, self.log = output, output.with_name(f"{output.name}.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = with_defaults([*flags, "--data", str(data), "--output", str(output)])
        fork = multiprocessing.get_context("fork")
        self.ranks = [fork.Process(target=self._run, args=(words, rank, processes, port)) for rank in range(processes)]
        for rank in self.ranks:
            rank.start()

    def _run(self, words: list[str], rank: int, processes: int, port: int) -> None:
        import train as script
        from finetune.runtime.entry import exit_code

        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        if processes > 1:
            # As launchers do: the threads of several processes that compete for a core are many times slower.
            torch.set_num_threads(max(1, torch.get_num_threads() // processes))
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                **{"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            }
        reset_accelerate()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        code = 1
        try:
            if self.prepare:
                self.prepare(rank)
            code = exit_code(script.main, words)
        except BaseException:
            traceback.print_exc()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that is killed
        for worker in multiprocessing.active_children():  # a forked process runs no exit handlers
            worker.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os._exit(code)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one process, or to all."""
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit codes, negative for a signal. Fails if a process is still running after that time."""
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [process for process in self.ranks if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"{len(hanging)} processes still ran after {seconds} s:\n{self.said}"
        return [process.exitcode for process in self.ranks]

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def with_defaults(flags: list[str]) -> list[str]:
    """The flags, completed for a run of a second or two."""
    tiny = {"--model": "shufflenet_v2_x0_5", "--image-size": "32", "--weights": "none", "--solver": "sgd"}
    default = {**tiny, "--epochs": "2", "--tracker": "none", "--precision": "no", "--cache-dir": CACHE}
    words = [word for flag, value in default.items() if flag not in flags for word in (flag, value)]
    return [*words, *([] if "--calibrate" in flags else ["--no-calibrate"]), *flags]


def metrics(output: Path) -> list[dict]:
    """The records of metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


# A run with every kind of state: phases, momentum, dropout, BatchNorm, an average, accumulation, workers, augmentation.
STATEFUL = (
    *("--recipe", "gradual_unfreeze", "--unfreeze-every", "1", "--model", "mobilenet_v3_small", "--ema", "0.8"),
    *("--batch-size", "10", "--accumulate", "2", "--epochs", "3", "--workers", "1", "--checkpoint-every", "1"),
)


def wait_for(pattern: str, run: Started, seconds: float = 60) -> None:
    """Wait until the run's folder has a file of that pattern."""
    deadline = time.monotonic() + seconds
    while not list(run.output.glob(pattern)):
        assert any(process.is_alive() for process in run.ranks), run.said
        assert time.monotonic() < deadline, run.said
        time.sleep(0.01)


def assert_same(one, other, tensors=frozenset({"average.safetensors", "optimizer.safetensors"})) -> None:
    """Assert that two runs' folders are equal to the byte, times aside."""
    assert metrics(one) == metrics(other)
    for name in ("model/model.safetensors", "model/model.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = ({p.name: p for p in folder.glob("checkpoints/*")} for folder in (one, other))
    newest = max(first)
    assert newest == max(second)
    written = sorted(p.name for p in first[newest].glob("*.safetensors"))
    assert tensors <= set(written)
    for name in written:
        assert (first[newest] / name).read_bytes() == (second[newest] / name).read_bytes(), name


def launch(launcher: list[str], output, data, *flags: str) -> subprocess.CompletedProcess:
    common = ["--recipe", "feature_extractor", "--data", str(data), "--output", str(output), "--tracker", "none"]
    common += ["--cache-dir", f"{output}-cache"]
    tiny = ["--model", "shufflenet_v2_x0_5", "--weights", "starter", "--epochs", "2", "--batch-size", "5"]
    tiny += [] if "--solver" in flags else ["--solver", "sgd"]
    command = [*launcher, "train.py", *common, *tiny, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240, check=False)


def accelerate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", *arguments]


def write_model(folder, **settings):
    net = Net(**{"model": "shufflenet_v2_x0_5", "weights": "none", "image_size": 32, **settings})
    torch.manual_seed(0)
    model, preprocess, _ = surgery.build(net, 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    known = metadata.of_run(net, ["a", "b", "c"], preprocess, {"epoch": 1, "val_accuracy": 0.5, "val_loss": 0.7})
    model_folder.save(folder, model.state_dict(), known)
    return model.eval(), preprocess


# Families whose layers differ most: with and without BatchNorm, depthwise convolutions, attention, shifted windows.
DIFFERENT = (
    "squeezenet1_0", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vit_b_32", "swin_t",
)  # fmt: skip
MODELS = torchvision.models.list_models(module=torchvision.models)
FAMILIES = [family.models.split()[0] for family in architectures.FAMILIES]  # one of each


def build_empty(name: str, classes: int = 7) -> tuple[nn.Module, architectures.Preprocess]:
    """A network with a new head on the meta device: shapes without values, in a fraction of a second."""
    with init_empty_weights(include_buffers=False):
        model, preprocess = surgery.build(Net(model=name, weights="none"), classes)[:2]
    return model.to("meta"), preprocess


def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off drawing, which takes longer than these runs."""
    monkeypatch.setattr("finetune.reporting.results.draw", lambda *_: None)


def build_network(rates: list[Rate | None], **settings: object) -> Network:
    """A network with random weights for three classes, whose depths are trained at these rates."""
    net = Net(**{"model": "shufflenet_v2_x0_5", "weights": "none", **settings})
    torch.manual_seed(0)
    return Network(*surgery.build(net, 3), rates, architectures.find(net.model))


def different_losses(train: Callable, *cases: Sequence[str], **options: object) -> list[list[float]]:
    """Train losses of runs with each of these flags; asserts that no two runs have the same."""
    seen: list[list[float]] = []
    for flags in cases:
        code, output = train(
            "--recipe", "finetune", "--lr", "1e-3", "--warmup", "0", "--epochs", "3", *flags, **options
        )
        assert code == 0
        losses = [record["train_loss"] for record in metrics(output)]
        assert all(losses != pytest.approx(other, rel=1e-6) for other in seen), flags
        seen.append(losses)
    return seen
