"""Fixtures: small image folders, and the training script in this process or in forked ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: with a pool of threads, forked processes would hang

import browser as chromium
import pytest
import torch
from support import Started, asks_for_a_gpu, no_pictures, reset_accelerate, restore_signals, with_defaults, write_images


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but the GPU tests: the others pin a CPU's numbers, and fork. Before CUDA is initialised."""
    if not asks_for_a_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # torch.export registers a fake GPU where there is none. A first backward pass after that starts a thread for
        # it, and no forked process can train any more; a first one before that starts none.
        torch.ones(1, requires_grad=True).backward()


@pytest.fixture(autouse=True)
def signals():
    """Restore signal handlers around each test: training changes them, and child processes inherit ignored signals."""
    restore_signals()  # after fixtures of the whole session
    yield
    restore_signals()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 3 × 7 images (no multiple of the batch), val/ with 3 × 3."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 7)
    write_images(folder / "val", 3, seed=1)
    return folder


@pytest.fixture
def start(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start train.py in processes of its own, without pictures: `start("name", "--lr", "1e-2", processes=2)`."""
    no_pictures(monkeypatch)

    def run(name: str, *flags: str, processes: int = 1, data: Path = image_folder, prepare=None) -> Started:
        return Started(tmp_path / name, data, list(flags), processes, prepare)

    return run


@pytest.fixture
def train(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run train.py in this process on the small folder: `train("--lr", "1e-2")` returns exit code and run folder."""
    import train as script
    from finetune.runtime.entry import exit_code

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
            if not pictures:  # they take a second, and few tests need them
                no_pictures(patched)
            return exit_code(script.main, with_defaults([*words, *flags])), output

    yield run
    torch.set_num_threads(threads)
    wandb = sys.modules.get("wandb")
    if wandb and wandb.run:  # a test broke its end; it would go on reading this process's output
        wandb.finish()


@pytest.fixture(scope="session")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `fast` and `slow`, of a model that mostly classifies the colours correctly."""
    import train as script

    folder = tmp_path_factory.mktemp("trained")
    for name, lr in (("fast", "3e-3"), ("slow", "1e-4")):
        reset_accelerate()
        flags = (
            f"--recipe finetune --data {image_folder} --output {folder / name} --tracker none --precision no --lr {lr}"
        )
        tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 3 --eval-batch-size 3"
        assert script.main([*flags.split(), *tiny.split(), "--cache-dir", str(folder / "cache")]) == 0
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of `python -m finetune` in this process: exit code, stdout, stderr."""
    from finetune import __main__ as program
    from finetune.runtime.entry import exit_code

    def run(*arguments: object) -> tuple[int, str, str]:
        reset_accelerate()
        capsys.readouterr()
        code = exit_code(program.main, [str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """Headless Chromium, driven by selenium: an empty page on a light, wide screen. For tests marked `browser`."""
    driver = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """`browser` with an empty page, without messages and requests of earlier tests."""
    chromium.emulate(browser)
    browser.get("about:blank")
    chromium.console(browser), chromium.requests(browser)
    return browser


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network computes in float64, in forked processes too; scores stay in float32."""
    from finetune.data import transforms
    from finetune.models import surgery
    from finetune.training import evaluation, step

    build, to_input = surgery.build, transforms.to_input

    def double(*arguments):
        model, *rest = build(*arguments)
        return model.double(), *rest

    monkeypatch.setattr(surgery, "build", double)
    for module in (evaluation, step):
        monkeypatch.setattr(module, "to_input", lambda *arguments: to_input(*arguments).double())
