"""Two processes train what one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, metrics
from safetensors.torch import load_file


def launch(launcher: list[str], output, data, *flags: str) -> subprocess.CompletedProcess:
    common = ["--recipe", "feature_extractor", "--data", str(data), "--output", str(output), "--tracker", "none"]
    common += ["--cache-dir", f"{output}-cache"]
    tiny = ["--model", "shufflenet_v2_x0_5", "--weights", "starter", "--epochs", "2", "--batch-size", "5"]
    command = [*launcher, "train.py", *common, *tiny, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240, check=False)


def accelerate(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", *arguments]


def test_two_processes_end_with_the_weights_and_scores_of_one(image_folder, tmp_path):
    one = launch([sys.executable], tmp_path / "one", image_folder, "--precision", "no")
    assert one.returncode == 0, one.stderr
    config = str(ROOT / "launch" / "cpu_2proc.yaml")
    two = launch(accelerate("--config_file", config), tmp_path / "two", image_folder)
    assert two.returncode == 0, two.stderr
    assert "2 on cpu" in two.stdout
    assert two.stdout.count("Best validation accuracy") == 1, "the main process alone speaks"
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["num_processes"], summary["val_images"], summary["precision"]) == (2, 9, "no")
    for line, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
            assert line[key] == pytest.approx(other[key], abs=1e-6), key
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)


def test_the_plain_launcher_works_and_says_nothing_of_precision(image_folder, tmp_path):
    done = launch(accelerate(), tmp_path / "run", image_folder, "--plan")
    assert done.returncode == 0, done.stderr
    assert "as Accelerate was told" not in done.stdout, "nobody told it anything"
    told = launch(accelerate("--mixed_precision", "no"), tmp_path / "run", image_folder, "--plan")
    assert "float32 (as Accelerate was told)" in told.stdout
    assert not (tmp_path / "run").exists()
