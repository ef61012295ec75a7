"""Small image folders, and the training script called in this process."""

import json
import os
import signal
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
CLASSES = ("blue", "green", "red")


def write_images(folder: Path, per_class: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Noisy JPEGs of about 40 pixels; the class lies in which channel is bright, and not too plainly."""
    random = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(per_class):
            pixels = random.integers(0, 160, (40 + k % 5, 44, 3))
            pixels[..., 2 - label % 3] += random.integers(10, 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{k:02}.jpg", quality=90)


def reset_accelerate() -> None:
    """Forget the processes and the device that an earlier test settled on."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 3 × 7 images (no multiple of the batch), val/ with 3 × 3."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 7)
    write_images(folder / "val", 3, seed=1)
    return folder


@pytest.fixture
def train(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run train.py in this process on the small folder: `train("--lr", "1e-2")` gives the exit code and the folder."""
    import train as script
    from finetune.errors import exit_code

    monkeypatch.chdir(tmp_path)
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    runs = []

    def run(*flags: str, data: Path | str = image_folder) -> tuple[int, Path]:
        output = tmp_path / f"run{len(runs)}"
        runs.append(output)
        reset_accelerate()
        common = ["--data", str(data), "--output", str(output), "--tracker", "none", "--precision", "no"]
        common += ["--cache-dir", str(tmp_path / "cache")]
        tiny = ["--model", "shufflenet_v2_x0_5", "--image-size", "32", "--weights", "none", "--epochs", "2"]
        given = {flag for flag in flags if flag.startswith("--")}
        pairs = zip([*common, *tiny][::2], [*common, *tiny][1::2], strict=True)
        return exit_code(script.main, [x for pair in pairs if pair[0] not in given for x in pair] + list(flags)), output

    yield run
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


def metrics(output: Path) -> list[dict]:
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
