"""A step is the same on any number of processes, with any accumulation, in any phase and precision."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file
from support import build_network, different_losses, metrics, reset_accelerate, write_images
from torch import nn

from finetune.config.settings import Net, Rate, Recipe, Training
from finetune.data.loader import Batch
from finetune.models import architectures, surgery, weights
from finetune.runtime import devices
from finetune.training.param_groups import make_optimizer
from finetune.training.step import Feed, TrainingStep

# Dropout in the middle of the network, no BatchNorm, a batch that neither 3 nor 4 divides; 3 epochs × 7 steps.
FLAGS = (
    *("--recipe", "finetune", "--model", "squeezenet1_1", "--epochs", "3", "--batch-size", "3", "--mixup", "0.4"),
    # Adam divides a gradient by its own size, and so makes rounding errors of gradients near zero as large as any.
    *("--optimizer", "sgd", "--lr", "1e-2", "--keep-checkpoints", "1"),
)


# ---- processes and micro-batches -------------------------------------------------------------------------------------
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "divisions", [[(2, 2), (3, 1)], pytest.param([(1, 2), (2, 1), (4, 1)], marks=pytest.mark.slow)], ids=str
)
def test_any_number_of_processes_and_micro_batches_ends_with_the_weights_of_one(start, divisions):
    alone = start("alone", *FLAGS)
    assert alone.wait() == [0], alone.said
    weights_alone = load_file(next(alone.output.glob("checkpoints/*/model.safetensors")))
    for processes, accumulate in divisions:
        run = start(f"{processes}x{accumulate}", *FLAGS, "--accumulate", str(accumulate), processes=processes)
        assert set(run.wait()) == {0}, run.said
        for line, other in zip(metrics(alone.output), metrics(run.output), strict=True):
            assert (line["step"], line["lr"]) == (other["step"], other["lr"])
            for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
                assert line[key] == pytest.approx(other[key], abs=1e-6), (processes, accumulate, key)
        newest = load_file(next(run.output.glob("checkpoints/*/model.safetensors")))
        for key, value in weights_alone.items():
            worst = (newest[key] - value).abs().max() / value.abs().max()
            # Rounding in float64: 1e-14 on any processor. In float32 it is 1e-6 to 1e-5, by the instruction set.
            assert worst < 1e-12, (processes, accumulate, key, worst)


def test_accumulation_ends_with_the_same_weights(train):
    flags = ("--weights", "starter", "--batch-size", "8", "--accumulate")
    whole, accumulated = (load_file(train(*flags, n)[1] / "model" / "model.safetensors") for n in ("1", "3"))
    for key, value in whole.items():
        torch.testing.assert_close(accumulated[key], value, rtol=1e-5, atol=1e-6)


# ---- one step by hand ------------------------------------------------------------------------------------------------
LOADER = SimpleNamespace(batch_sampler=SimpleNamespace(largest=4))  # of batches that `batch_of` makes


def batch_of(images: torch.Tensor, labels: torch.Tensor, sample_weights: torch.Tensor) -> Batch:
    positions = torch.arange(len(labels))
    return Batch(images, labels, sample_weights, positions, positions, None, None)


def make_step(network, training: Training) -> tuple[TrainingStep, Feed]:
    """A step on activations, for which `Feed` has no transform."""
    reset_accelerate()
    accelerator = Accelerator(cpu=True)
    network.set_phase(epoch=0)
    optimizer = accelerator.prepare(make_optimizer(network, training, accelerator.scaler))
    step = TrainingStep(Recipe(training=training), network, optimizer, [0, 1, 2], 3, accelerator)
    return step, Feed(devices.wrap(accelerator, network.model), LOADER, None)


def test_a_step_gives_its_sums_and_the_gradients_norm_before_clipping():
    training = Training(optimizer="sgd", lr=0.1, momentum=0.0, clip_norm=0.01)
    network = build_network([None] * 4 + [Rate(1.0)], model="squeezenet1_1")
    nn.init.normal_(network.model.classifier[1].weight, std=0.1)
    network.model.classifier[0] = nn.Identity()  # no dropout
    step, feed = make_step(network, training)
    torch.manual_seed(1)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    sample_weights = torch.tensor([0.25, 0.25, 0.5, 0.0])
    logits = network.model(images)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    (losses * sample_weights).sum().backward()
    head = list(network.model.classifier[1].parameters())
    before = [parameter.detach().clone() for parameter in head]
    gradients = [parameter.grad.clone() for parameter in head]
    network.model.zero_grad()
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()

    result = step(feed, [batch_of(images, labels, sample_weights)], step=0, lr=0.1)
    correct = (logits.argmax(1) == labels)[:3].sum().item()
    assert result.sums.tolist() == pytest.approx([losses[:3].sum().item(), correct, 3]), "weight 0 is no image"
    assert result.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert norm > training.clip_norm
    for parameter, old, gradient in zip(head, before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * 0.01 / norm * gradient, rtol=1e-4, atol=1e-8)
        assert parameter.grad is None


def test_a_norm_is_given_without_clipping_too():
    network = build_network([None] * 4 + [Rate(1.0)], model="squeezenet1_1")
    nn.init.normal_(network.model.classifier[1].weight, std=0.1)
    step, feed = make_step(network, Training(optimizer="sgd", momentum=0.0))
    before = network.model.classifier[1].weight.detach().clone()
    batch = batch_of(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]), torch.full((4,), 0.25))
    norm = step(feed, [batch], step=0, lr=0.1).gradient_norm.item()
    moved = torch.cat([(before - network.model.classifier[1].weight).flatten(), -network.model.classifier[1].bias])
    assert norm == pytest.approx(moved.norm().item() / 0.1, rel=1e-3)


# ---- phases ----------------------------------------------------------------------------------------------------------
def phases(epochs: int = 3, batches: int = 2) -> list[dict[str, torch.Tensor]]:
    """Train a small network whose depths start one after the other; its weights at the end of each epoch."""
    accelerator = Accelerator(cpu=True)
    rates = [Rate(0.5, start=max(0, 4 - depth - 1)) if depth >= 2 else None for depth in range(5)]
    network = build_network(rates, model="squeezenet1_1", image_size=32)
    model = network.model
    model.classifier[0] = nn.Identity()  # dropout would differ between processes
    nn.init.normal_(model.classifier[1].weight, std=0.1)
    training = Training(optimizer="adamw", lr=1e-3, weight_decay=0.1)
    recipe = Recipe(training=training)
    optimizer = accelerator.prepare(make_optimizer(network, training))
    step = TrainingStep(recipe, network, optimizer, [0, 1, 2], 3, accelerator)

    generator = torch.Generator().manual_seed(7)
    own = slice(accelerator.process_index, None, accelerator.num_processes)
    history, done = [], 0
    for epoch in range(epochs):
        network.set_phase(epoch)
        if epoch in network.phase_starts(epochs):
            feed = Feed(devices.wrap(accelerator, model), LOADER, None)
        for _ in range(batches):
            images, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4) % 3
            step(feed, [batch_of(images[own], labels[own], torch.full((4,), 0.25)[own])], done, training.lr)
            done += 1
        history.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    gathered = [accelerator.gather(torch.cat([v.flatten() for v in held.values()])[None]) for held in history]
    for held in gathered:
        assert (held == held[0]).all(), "the processes' weights are equal to the bit after each phase"
    if accelerator.is_main_process and accelerator.num_processes > 1:
        torch.save(history, "two.pt")
    return history


def test_nothing_moves_before_its_epoch_neither_by_decay_nor_by_momentum():
    reset_accelerate()
    before = build_network([None] * 5, model="squeezenet1_1", image_size=32).model.state_dict()
    trained = phases()
    starts = {"features.3": None, "features.6": 1, "features.9": 0}
    for path, start in starts.items():
        keys = [key for key in before if key.startswith(f"{path}.")]
        assert len(keys) == 6
        for epoch, held in enumerate(trained):
            moved = [not torch.equal(held[key], before[key]) for key in keys]
            assert not any(moved) if start is None or epoch < start else all(moved), (path, epoch)
    assert len(trained) == 3


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
def test_frozen_depths_are_unchanged_to_the_bit_until_their_phase(train, recipe):
    flags = ("--unfreeze-every", "5") if recipe == "gradual_unfreeze" else ("--head-epochs", "5")
    code, output = train("--recipe", recipe, *flags, "--weights", "starter")
    assert code == 0
    after, loaded = (load_file(p / "model.safetensors") for p in (output / "model", weights.STARTER_FOLDER))
    frozen = [key for key in loaded if not key.startswith("fc.")]
    assert len(frozen) > 100
    assert all(torch.equal(after[key], loaded[key]) for key in frozen)
    code, output = train("--recipe", recipe, *[f.replace("5", "1") for f in flags], "--weights", "starter")
    assert code == 0
    after = load_file(output / "model" / "model.safetensors")
    moved = [key for key in frozen if not torch.equal(after[key], loaded[key])]
    expected = [key for key in frozen if key.startswith("conv5.")] if recipe == "gradual_unfreeze" else frozen
    assert set(moved) <= set(expected)
    assert f"{architectures.find('shufflenet_v2_x0_5').stages[4]}.0.weight" in moved


def test_after_training_frozen_parameters_and_buffers_are_what_was_loaded(train, tmp_path):
    seen = 0
    for name in ("shufflenet_v2_x0_5", "resnet18"):
        torch.manual_seed(1)
        model, _ = surgery.build(Net(model=name, weights="none"), 3)[:2]
        for module in model.modules():  # statistics that a single batch in training mode would move
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
        loaded = model.state_dict()
        save_file({key: value.contiguous() for key, value in loaded.items()}, tmp_path / f"{name}.safetensors")
        code, output = train("--model", name, "--weights", str(tmp_path / f"{name}.safetensors"), "--epochs", "1")
        assert code == 0
        after = load_file(output / "model" / "model.safetensors")
        assert after.keys() == loaded.keys()
        frozen = [key for key in loaded if not key.startswith("fc.")]
        assert sum("running_mean" in key for key in frozen) >= 20
        for key in frozen:
            assert torch.equal(after[key], loaded[key]), key
        assert not torch.equal(after["fc.weight"], loaded["fc.weight"])
        seen += 1
    assert seen == 2


# ---- precision and compilation ---------------------------------------------------------------------------------------
def test_a_model_that_is_wrapped_again_computes_in_the_same_precision():
    reset_accelerate()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for _ in range(3):
        wrapped = devices.wrap(accelerator, model)
        assert wrapped(torch.zeros(2, 3, 8, 8)).dtype == torch.float32
    assert seen == [torch.bfloat16] * 3
    assert "forward" not in vars(model), "the model itself stays as it was"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--views", "0"), ("--mixup", "0.5"), ("--cutmix", "1"), ("--cache-gb", "0")])
def test_a_run_in_bf16_is_in_bf16_in_every_phase_and_resumes_in_it(train, monkeypatch, flags):
    build, seen = surgery.build, []

    def watched(*arguments):
        model, *rest = build(*arguments)

        def note(module, inputs, output):
            if torch.is_grad_enabled() and output.device.type == "cpu":  # a training step, not the plan's
                seen.append(output.dtype)

        model.conv1[0].register_forward_hook(note)
        return model, *rest

    monkeypatch.setattr(surgery, "build", watched)
    flags = ("--recipe", "linear_then_finetune", "--head-epochs", "1", "--precision", "bf16", *flags)
    flags = (*flags, "--schedule", "constant", "--batch-size", "11")
    _, whole = train(*flags)
    assert seen == [torch.bfloat16] * 4, "two epochs of two steps"
    seen.clear()
    _, run = train(*flags, "--epochs", "1")
    assert train(*flags, "--resume", "--output", str(run))[0] == 0
    assert seen == [torch.bfloat16] * 4
    assert metrics(run) == metrics(whole)


@pytest.mark.slow
def test_a_compiled_network_trains_as_the_plain_one(train, monkeypatch):
    calls = []

    def backend(graph, inputs):
        def run(*arguments):
            calls.append(len(arguments))
            return graph(*arguments)

        return run

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: original(self, backend=backend))
    flags = ("--recipe", "feature_extractor", "--weights", "starter")
    code, plain = train(*flags)
    assert (code, calls) == (0, [])
    code, compiled = train(*flags, "--compile")
    assert code == 0
    assert len(calls) == metrics(compiled)[-1]["step"], "each step runs what was compiled"
    for record, same in zip(metrics(plain), metrics(compiled), strict=True):
        for key in ("train_loss", "val_loss"):
            assert same[key] == pytest.approx(record[key], rel=1e-4)


# ---- settings --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_each_setting_changes_the_training(train, tmp_path):
    write_images(tmp_path / "data" / "train", 3)
    for k in (1, 2):  # classes of unequal size, without which two of the settings change nothing
        (tmp_path / "data" / "train" / "red" / f"{k:02}.jpg").unlink()
    write_images(tmp_path / "data" / "val", 2, seed=1)
    settings = ("--optimizer sgd", "--optimizer adam", "--schedule one_cycle", "--schedule plateau", "--class-weights")
    cases = [(), *(setting.split() for setting in (*settings, "--balanced"))]
    assert len(different_losses(train, *cases, data=tmp_path / "data")) == 7
