"""Small image folders, and the training script in this process or in forked ones."""

import atexit
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny nets gain nothing from threads and lose from waiting

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
ROOT = Path(__file__).parent.parent
CACHE = tempfile.mkdtemp(prefix="finetune-tests-")
OWNER = os.getpid()  # forked processes leave it alone
atexit.register(lambda: os.getpid() == OWNER and shutil.rmtree(CACHE, ignore_errors=True))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}
CLASSES = ("blue", "green", "red")


def asks_for_a_gpu(marks: str) -> bool:
    """Whether pytest's `-m` selects the tests that need a GPU."""
    return re.search(r"(?<!not )\bgpu\b", marks) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all other tests, which pin a CPU's numbers and fork; before anything asks CUDA for them."""
    if not asks_for_a_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def write_images(folder: Path, per_class: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Noisy JPEGs of about 40 pixels; the class lies in which channel is bright, and not too plainly."""
    random = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = random.integers(0, 160, (40 + k % 5, 44, 3))
            pixels[..., 2 - label % 3] += random.integers(10, 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{k:02}.jpg", quality=90)


def restore_signals() -> None:
    """Let signals do what they did when the tests began."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


def reset_accelerate() -> None:
    """Forget the processes and the device that an earlier test settled on."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def signals():
    """Training in this process changes what signals do, and an ignored one is ignored by all that is started later."""
    restore_signals()  # what a fixture of the whole session changed
    yield
    restore_signals()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 3 × 7 images (no multiple of the batch), val/ with 3 × 3."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 7)
    write_images(folder / "val", 3, seed=1)
    return folder


class Started:
    """train.py in processes of its own, forked from this one, where torch is imported already."""

    def __init__(self, output: Path, data: Path, flags: list[str], processes: int) -> None:
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
        from finetune.entry import exit_code

        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        if processes > 1:
            # As launchers do: threads of several processes that wait for one core each take many times as long.
            torch.set_num_threads(max(1, torch.get_num_threads() // processes))
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                **{"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            }
        reset_accelerate()
        code = 1
        try:
            code = exit_code(script.main, words)
        except BaseException:
            traceback.print_exc()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that is killed
        for worker in multiprocessing.active_children():  # a forked process does nothing at its exit
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
        """The exit codes, negative for a signal; fails if a process outlives the time."""
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
    """Flags for a run of a second or two, where they are not given."""
    tiny = {"--model": "shufflenet_v2_x0_5", "--image-size": "32", "--weights": "none", "--epochs": "2"}
    default = {**tiny, "--tracker": "none", "--precision": "no", "--cache-dir": CACHE}
    return [word for flag, value in default.items() if flag not in flags for word in (flag, value)] + flags


@pytest.fixture
def start(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start train.py in processes of its own: `start("name", "--lr", "1e-2", processes=2)`. They draw no pictures."""
    monkeypatch.setattr("finetune.plots.draw_all", lambda *_: None)  # forked, they inherit it

    def run(name: str, *flags: str, processes: int = 1, data: Path = image_folder) -> Started:
        return Started(tmp_path / name, data, list(flags), processes)

    return run


@pytest.fixture
def train(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run train.py in this process on the small folder: `train("--lr", "1e-2")` gives the exit code and the folder."""
    import train as script
    from finetune.entry import exit_code

    monkeypatch.chdir(tmp_path)
    threads, runs = torch.get_num_threads(), []

    def run(*flags: str, data: Path | str = image_folder, pictures: bool = False) -> tuple[int, Path]:
        output = tmp_path / f"run{len(runs)}"
        runs.append(output)
        reset_accelerate()
        words = [] if "--data" in flags else ["--data", str(data)]
        words += [] if "--output" in flags else ["--output", str(output)]
        words += [] if "--cache-dir" in flags else ["--cache-dir", str(tmp_path / "cache")]
        with monkeypatch.context() as patched:
            if not pictures:  # a second each, which few tests look at
                patched.setattr("finetune.plots.draw_all", lambda *_: None)
            return exit_code(script.main, with_defaults([*words, *flags])), output

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network computes in float64, in forked processes too; what a run shows and scores stays in float32."""
    from finetune import evaluate, samples, surgery

    build, to_input = surgery.build, samples.to_input

    def double(*arguments):
        model, *rest = build(*arguments)
        return model.double(), *rest

    monkeypatch.setattr(surgery, "build", double)
    for module in (samples, evaluate):
        monkeypatch.setattr(module, "to_input", lambda *arguments: to_input(*arguments).double())


def metrics(output: Path) -> list[dict]:
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


@pytest.fixture(scope="session")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `fast` and `slow`, of a model that tells the colours apart, mostly."""
    import train as script

    folder = tmp_path_factory.mktemp("trained")
    for name, lr in (("fast", "3e-3"), ("slow", "1e-4")):
        reset_accelerate()
        flags = (
            f"--recipe finetune --data {image_folder} --output {folder / name} --tracker none --precision no --lr {lr}"
        )
        tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 3 --eval-batch-size 3"
        assert script.main([*flags.split(), *tiny.split()]) == 0
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process: exit code, stdout, stderr."""
    from finetune import __main__ as program
    from finetune.entry import exit_code

    def run(*arguments: object) -> tuple[int, str, str]:
        reset_accelerate()
        capsys.readouterr()
        code = exit_code(program.main, [str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run
