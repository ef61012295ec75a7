"""One GPU: every recipe, each precision, resume, channels-last, compilation.

python -m pytest -m gpu -n 0
"""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, STATEFUL, metrics, with_defaults

from finetune import recipes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("recipe", recipes.NAMES)
def test_every_recipe_trains_an_epoch(train, recipe):
    model = () if recipe != "vgg_cifar10" else ("--model", "vgg11")
    code, output = train("--recipe", recipe, "--epochs", "1", "--precision", "auto", *model)
    assert code == 0
    assert json.loads((output / "summary.json").read_text())["device"] == "cuda"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close_to_float32(train, precision):
    flags = ("--recipe", "feature_extractor", "--weights", "starter", "--epochs", "3")
    (_, full), (_, mixed) = train(*flags, "--precision", "no"), train(*flags, "--precision", precision)
    assert json.loads((mixed / "summary.json").read_text())["precision"] == precision
    for line, other in zip(metrics(full), metrics(mixed), strict=True):
        assert other["train_loss"] == pytest.approx(line["train_loss"], abs=0.02)
        assert other["val_loss"] == pytest.approx(line["val_loss"], abs=0.02)


def test_the_layout_changes_no_result(train):
    flags = ("--recipe", "feature_extractor", "--weights", "starter", "--precision", "no")
    (code, last), (other_code, first) = train(*flags), train(*flags, "--no-channels-last")
    assert (code, other_code) == (0, 0)
    layouts = [json.loads((run / "config.json").read_text())["channels_last"] for run in (last, first)]
    assert layouts == [True, False]
    assert len(metrics(last)) == 2
    for line, same in zip(metrics(last), metrics(first), strict=True):
        assert same["val_loss"] == pytest.approx(line["val_loss"], abs=1e-3)


def test_a_compiled_model_trains_as_the_plain_one(train):
    flags = ("--recipe", "feature_extractor", "--weights", "starter", "--precision", "no")
    (_, plain), (_, compiled) = train(*flags), train(*flags, "--compile")
    for line, other in zip(metrics(plain), metrics(compiled), strict=True):
        assert other["val_loss"] == pytest.approx(line["val_loss"], abs=1e-3)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_resumed_run_continues_where_it_stopped(train, monkeypatch, precision):
    """With fp16 the gradient scaler's state too. Close, not equal: a GPU's atomic additions have no fixed order."""
    flags = ("--recipe", "finetune", "--epochs", "3", "--precision", precision, "--schedule", "constant")
    _, whole = train(*flags)
    _, run = train(*flags[:2], "--epochs", "1", *flags[4:])
    assert train(*flags, "--resume", "--output", str(run))[0] == 0
    for line, other in zip(metrics(whole), metrics(run), strict=True):
        assert other["train_loss"] == pytest.approx(line["train_loss"], rel=1e-3)
    newest = max((run / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    assert ("scaler" in state) == (precision == "fp16")


def test_a_killed_and_resumed_run_ends_close_to_an_uninterrupted_one(tmp_path, image_folder):
    """In new processes, since CUDA cannot be forked."""

    def command(name: str, *more: str) -> list[str]:
        words = with_defaults([*STATEFUL, "--data", str(image_folder), "--output", str(tmp_path / name), *more])
        return [sys.executable, "train.py", *words]

    subprocess.run(command("whole"), cwd=ROOT, check=True)
    killed = subprocess.Popen(command("killed"), cwd=ROOT)
    while not list((tmp_path / "killed").glob("checkpoints/0001-*")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run(command("killed", "--resume"), cwd=ROOT, check=True)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-4)
