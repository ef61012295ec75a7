"""Freezing in phases: what starts when, on one process and on two."""

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from conftest import reset_accelerate
from safetensors.torch import load_file
from torch import nn

from finetune import archs, freezing, groups, recipes, surgery
from finetune.errors import UserError
from finetune.recipe import Net, Rate, Training


def test_the_recipes_are_functions_of_depth():
    def answers(name, depths, **changes):
        settings = recipes.load(name).SETTINGS
        changed = settings.depths.__class__(**{**settings.depths.__dict__, **changes})
        return recipes.rates(settings.__class__(**{**settings.__dict__, "depths": changed}), depths)

    assert answers("last_layers", 5, layers=2) == [None, None, None, Rate(1.0), Rate(1.0)]
    assert [rate.scale for rate in answers("layerwise_lr", 6)] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-2, 0.1, 1])
    assert [rate.start for rate in answers("gradual_unfreeze", 4, unfreeze_every=3)] == [9, 6, 3, 0]
    assert answers("linear_then_finetune", 3, head_epochs=2) == [Rate(0.1, 2), Rate(0.1, 2), Rate(1.0)]
    assert answers("grayscale", 3) == answers("vgg_cifar10", 3) == [None, None, Rate(1.0)]
    assert answers("scratch", 3) == [Rate(1.0)] * 3
    with pytest.raises(UserError, match="--layers 9, but auto has 6 depths"):
        answers("last_layers", 6, layers=9)


def phases(epochs: int = 3, batches: int = 2) -> list[dict[str, torch.Tensor]]:
    """Train a small net whose depths start one after the other; its weights at the end of each epoch."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model, _, stages = surgery.build(Net(model="squeezenet1_1", weights="none", image_size=32), 3)
    model.classifier[0] = nn.Identity()  # dropout would differ between processes
    nn.init.normal_(model.classifier[1].weight, std=0.1)
    rates = [Rate(0.5, start=max(0, 4 - depth - 1)) if depth >= 2 else None for depth in range(5)]
    training = Training(optimizer="adamw", lr=1e-3, weight_decay=0.1)
    optimizer = accelerator.prepare(groups.make_optimizer(model, stages, rates, training, archs.find("squeezenet1_1")))
    generator = torch.Generator().manual_seed(7)
    history, phase = [], None
    for epoch in range(epochs):
        freezing.set_phase(model, stages, rates, epoch)
        if phase != (phase := freezing.phase(rates, epoch)):
            wrapped = freezing.wrap(accelerator, model)
        for _ in range(batches):
            images = torch.randn(4, 3, 32, 32, generator=generator)
            mine = images[accelerator.process_index :: accelerator.num_processes]
            labels = torch.arange(4)[accelerator.process_index :: accelerator.num_processes] % 3
            losses = nn.functional.cross_entropy(wrapped(mine), labels, reduction="none")
            accelerator.backward(losses.sum() / 4 * accelerator.num_processes)
            groups.set_rates(optimizer, training.lr)
            optimizer.step()
            optimizer.zero_grad()
        history.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    gathered = [accelerator.gather(torch.cat([v.flatten() for v in held.values()])[None]) for held in history]
    for held in gathered:
        assert (held == held[0]).all(), "the processes' weights are equal to the bit after each phase"
    if accelerator.is_main_process and accelerator.num_processes > 1:
        torch.save(history, "two.pt")
    return history


def test_nothing_moves_before_its_epoch_neither_by_decay_nor_by_momentum():
    torch.manual_seed(0)
    before = surgery.build(Net(model="squeezenet1_1", weights="none", image_size=32), 3)[0].state_dict()
    first, second, third = phases()
    starts = {"features.3": None, "features.6": 1, "features.9": 0}
    for path, start in starts.items():
        keys = [key for key in before if key.startswith(f"{path}.")]
        assert len(keys) == 6
        for epoch, held in enumerate((first, second, third)):
            moved = [not torch.equal(held[key], before[key]) for key in keys]
            assert not any(moved) if start is None or epoch < start else all(moved), (path, epoch)


def test_two_processes_stay_equal_through_every_phase_and_train_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    debug_launcher(phases, num_processes=2)
    alone = phases()
    together = torch.load("two.pt", weights_only=True)
    assert len(together) == 3
    for one, two in zip(alone, together, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", ["gradual_unfreeze", "linear_then_finetune"])
def test_frozen_parts_are_bit_unchanged_until_their_phase(train, tmp_path, recipe):
    flags = ("--unfreeze-every", "5") if recipe == "gradual_unfreeze" else ("--head-epochs", "5")
    code, output = train("--recipe", recipe, *flags, "--weights", "starter")
    assert code == 0
    after, loaded = (load_file(p / "model.safetensors") for p in (output / "model", surgery.STARTER_FOLDER))
    frozen = [key for key in loaded if not key.startswith("fc.")]
    assert len(frozen) > 100
    assert all(torch.equal(after[key], loaded[key]) for key in frozen)
    code, output = train("--recipe", recipe, *[f.replace("5", "1") for f in flags], "--weights", "starter")
    assert code == 0
    after = load_file(output / "model" / "model.safetensors")
    moved = [key for key in frozen if not torch.equal(after[key], loaded[key])]
    expected = [key for key in frozen if key.startswith("conv5.")] if recipe == "gradual_unfreeze" else frozen
    assert set(moved) <= set(expected)
    assert f"{archs.find('shufflenet_v2_x0_5').stages[4]}.0.weight" in moved
