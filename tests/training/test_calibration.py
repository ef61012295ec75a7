"""The temperature makes probabilities agree with accuracy, and changes no prediction."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import no_pictures

import finetune
from finetune.training.calibration import HIGHEST, LOWEST, fit_temperature


def sampled(temperature: float, images: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 5), and labels drawn from their softmax at a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(images, 5, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_labels_that_were_drawn_at_one_is_found(temperature):
    logits, labels = sampled(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    tried = [F.cross_entropy(logits / (found * factor), labels).item() for factor in (0.98, 1, 1.02)]
    assert tried[1] == min(tried)


def test_few_images_that_are_all_right_do_not_make_it_certain():
    logits = 0.2 * torch.eye(4).repeat(5, 1)
    found = fit_temperature(logits, logits.argmax(1))
    assert LOWEST <= found < 1
    assert 0.5 < (logits / found).softmax(1).max() < 0.999


def test_labels_that_contradict_the_logits_flatten_them():
    logits = torch.eye(4).repeat(5, 1)
    assert fit_temperature(logits, (logits.argmax(1) + 1) % 4) == HIGHEST


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_saved_model_is_the_calibrated_one(train, monkeypatch, image_folder, head):
    no_pictures(monkeypatch)
    flags = ("--head", head, "--weights", "starter", "--lr", "1e-3")
    plain, output = (train(*flags, *more)[1] for more in ((), ("--calibrate",)))
    summary = json.loads((output / "summary.json").read_text())
    temperature = summary["temperature"]
    assert temperature != 1
    assert summary["calibrated_val_loss"] < summary["best_val_loss"] + 1e-3  # the fit smooths the labels
    before, after = (load_file(run / "model" / "model.safetensors") for run in (plain, output))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {f"fc{'' if head == 'linear' else '.3'}.{kind}" for kind in ("weight", "bias")}
    for key in changed:
        torch.testing.assert_close(before[key] / temperature, after[key])
    model, transform, classes = finetune.load(output)
    paths = sorted((image_folder / "val").rglob("*.jpg"))
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    with torch.no_grad():
        loss = F.cross_entropy(model(transform(paths)), labels).item()
    assert loss == pytest.approx(summary["calibrated_val_loss"], rel=1e-4)
    score = json.loads((output / "model" / "model.json").read_text())["score"]
    assert score["temperature"] == temperature
    assert score["val_loss"] == summary["calibrated_val_loss"]
    assert json.loads((plain / "summary.json").read_text())["temperature"] == 1
