"""The settings of the optimisation do what they say."""

import pytest
import torch
from conftest import metrics, write_images
from safetensors.torch import load_file

from finetune import checkpoint, data, ema, loss, noise, schedule
from finetune.recipe import Training

T2S_LOSSES = (0.3606, 0.3060, 0.2639, 0.2218, 0.2080, 0.2523, 0.3576, 0.55)


def history(losses):
    return [{"epoch": k + 1, "val_loss": value, "val_accuracy": 0.5} for k, value in enumerate(losses)]


def test_early_stopping_stops_where_the_caltech_write_up_did():
    training = Training(best_by="loss", patience=3)
    stops = [schedule.should_stop(history(T2S_LOSSES[:n]), training) for n in range(1, 9)]
    assert stops == [False] * 7 + [True]
    assert not schedule.should_stop(history(T2S_LOSSES), Training(best_by="loss", patience=0))
    assert schedule.should_stop(history((1.0, 0.99, 0.98)), Training(best_by="loss", patience=2, min_delta=0.05))


def test_early_stopping_ends_a_run_and_keeps_the_best(train):
    code, output = train("--recipe", "finetune", "--patience", "1", "--epochs", "9", "--lr", "1e-9")
    assert code == 0
    assert len(metrics(output)) < 9


def test_plateau_falls_when_the_loss_has_not_for_so_many_epochs():
    training = Training(schedule="plateau", step_epochs=2, step_factor=0.5)
    factor = schedule.make_schedule(training, 1)
    losses = [1.0, 0.9, 0.95, 0.92, 0.91, 0.93, 0.8]
    assert [factor(0, history(losses[:n])) for n in range(8)] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_one_cycle_equals_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, final_div_factor=1e9)
    factor = schedule.make_schedule(Training(epochs=1000, schedule="one_cycle", warmup=0.0), 1)
    for update in range(1000):
        assert factor(update) == pytest.approx(optimizer.param_groups[0]["lr"], abs=6e-3)
        optimizer.step()
        reference.step()


def test_accumulation_ends_with_the_same_weights(train):
    whole, parts = (
        load_file(train("--weights", "starter", "--batch-size", "8", "--accumulate", n)[1] / "model/model.safetensors")
        for n in ("1", "3")
    )
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-5, atol=1e-6)


def test_too_small_a_micro_batch_for_batchnorm_is_refused_before_anything_is_written(train, capsys):
    flags = ("--recipe", "finetune", "--batch-size", "4", "--accumulate", "3")
    code, output = train(*flags)
    assert code == 2
    assert "BatchNorm, which is trained here, needs 2: use --batch-size 7 or" in capsys.readouterr().err
    assert not output.exists()
    assert train(*flags, "--recipe", "feature_extractor", "--epochs", "1")[0] == 0, "no BatchNorm is trained"


@pytest.mark.parametrize("count", [5, 21])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_and_processes_together_are_the_global_batch(count, parts):
    whole = list(data.GlobalBatches(count, 6, seed=0))
    split = [list(data.GlobalBatches(count, 6, 0, process, 2, parts)) for process in range(2)]
    assert {len(part) for part in split} == {len(whole) * parts}
    for number, batch in enumerate(whole):
        drawn = [d for part in split for k in range(parts) for d in part[number * parts + k] if d.share > 0]
        assert sorted(d.index for d in drawn) == sorted(d.index for d in batch)
        assert sum(d.share for d in drawn) == pytest.approx(1.0)


def test_balanced_batches_draw_each_class_equally_often():
    labels = torch.tensor([0] * 180 + [1] * 20)
    batches = data.GlobalBatches(200, 50, seed=0, weights=1 / torch.bincount(labels)[labels])
    drawn = torch.tensor([draw.index for epoch in range(20) for draw in epoch_of(batches, epoch)])
    assert len(drawn) == 4000
    assert labels[drawn].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_balanced_drawing_has_no_limit_and_favours_none():
    count = 2**24 + 2**22  # more than float32 counts
    drawn = data.drawn(torch.ones(count), 10_000, torch.Generator().manual_seed(0))
    assert drawn.double().mean().item() / count == pytest.approx(0.5, abs=0.01)
    assert (drawn >= 2**24).double().mean().item() == pytest.approx(0.2, abs=0.02)
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = data.drawn(weights, 10_000, torch.Generator().manual_seed(0)).bincount(minlength=5)
    assert (drawn / 10_000).tolist() == pytest.approx([0, 0.25, 0, 0.75, 0], abs=0.02)
    assert drawn[weights == 0].tolist() == [0, 0, 0]


def test_an_epochs_sums_go_on_counting_beyond_float32(train, monkeypatch):
    flags = ("--recipe", "finetune", "--epochs", "1")
    small = metrics(train(*flags)[1])[0]
    original = checkpoint.Progress
    monkeypatch.setattr(checkpoint, "Progress", lambda **given: original(sums=[2.0**24, 2.0**24], **given))
    large = metrics(train(*flags)[1])[0]
    for name in ("train_loss", "train_accuracy"):
        assert large[name] * 21 - 2**24 == pytest.approx(small[name] * 21, abs=1e-6)


def epoch_of(batches, epoch):
    batches.start_at(epoch)
    return [draw for batch in batches for draw in batch]


def test_class_weights_give_every_class_the_same_weight():
    weights = loss.rarity([0] * 30 + [1] * 10, 2, on=True)
    assert weights.tolist() == pytest.approx([2 / 3, 2])
    assert loss.rarity([0, 0, 1], 2, on=False).tolist() == [1, 1]


def test_mixed_loss_is_the_mixture_of_both_losses():
    torch.manual_seed(0)
    logits, labels, others = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    mix = torch.tensor([1.0, 0.3, 0.5, 0.0])
    _, losses = loss.cross_entropy(logits, labels, others, mix, 0.0, 0.0, torch.ones(3))
    targets = mix[:, None] * torch.eye(3)[labels] + (1 - mix)[:, None] * torch.eye(3)[others]
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))


def test_class_weights_scale_each_label_s_smoothed_loss():
    torch.manual_seed(0)
    logits, labels, others = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    weights, mix = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([1.0, 0.3, 0.5, 0.0])
    smoothed = [torch.nn.functional.cross_entropy(logits, y, reduction="none", label_smoothing=0.1)
                for y in (labels, others)]  # fmt: skip
    first, second = weights[labels] * smoothed[0], weights[others] * smoothed[1]
    _, plain = loss.cross_entropy(logits, labels, None, None, 0.1, 0.0, weights)
    torch.testing.assert_close(plain, first)
    _, mixed = loss.cross_entropy(logits, labels, others, mix, 0.1, 0.0, weights)
    torch.testing.assert_close(mixed, mix * first + (1 - mix) * second)


def test_class_weights_with_smoothing_learn_the_common_class_too():
    labels = [0] * 50 + [1] * 2
    y = torch.tensor(labels)
    x = torch.eye(2)[y]  # (N, 2), separable
    criterion = loss.make_criterion(
        Training(class_weights=True, label_smoothing=0.1), labels, 2, 0.0, torch.device("cpu")
    )
    weight = torch.zeros(2, 2, requires_grad=True)
    for _ in range(200):
        logits, losses = criterion(x @ weight, y, None, None)
        (gradient,) = torch.autograd.grad(losses.mean(), weight)
        weight.data -= gradient
    assert torch.equal(logits.argmax(1), y)


@pytest.mark.parametrize("flag", ["--mixup", "--cutmix"])
def test_mixing_is_seeded_per_image_and_changes_with_no_worker(train, flag):
    plain = metrics(train("--recipe", "finetune")[1])
    mixed = [metrics(train("--recipe", "finetune", flag, "1.0", "--workers", workers)[1]) for workers in ("0", "2")]
    assert mixed[0] == mixed[1]
    assert mixed[0][0]["train_loss"] != plain[0]["train_loss"]


def test_the_moving_average_is_what_is_saved(train):
    fast = load_file(train("--recipe", "finetune", "--lr", "1e-2", "--warmup", "0")[1] / "model/model.safetensors")
    slow = load_file(
        train("--recipe", "finetune", "--lr", "1e-2", "--warmup", "0", "--ema", "0.99")[1] / "model/model.safetensors"
    )
    assert slow.keys() == fast.keys()
    # Adam's first step is lr everywhere, and the average begins there; three more count one per cent each.
    assert slow["fc.weight"].abs().max().item() == pytest.approx(1e-2, rel=0.05)
    assert fast["fc.weight"].abs().max() > 1.5e-2


def test_the_average_is_made_before_dropout_is_patched():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    assert ema.make_average(model, decay=0.9)[1] is not model
    noise.Noise(model, seed=0)
    with pytest.raises(AssertionError, match="made after dropout was patched"):
        ema.make_average(model, decay=0.9)
    assert ema.make_average(model, decay=0.0) == (None, model), "without an average nothing is copied"


@pytest.mark.parametrize("augment", ["none", "basic", "strong", "rand", "trivial"])
def test_every_augmentation_trains(train, augment):
    code, output = train("--augment", augment, "--epochs", "1")
    assert code == 0
    assert len(metrics(output)) == 1


@pytest.mark.parametrize("flags", [("--optimizer", "sgd"), ("--optimizer", "adam"), ("--schedule", "one_cycle"),
                                   ("--schedule", "plateau"), ("--class-weights",), ("--balanced",)])  # fmt: skip
def test_every_setting_trains(train, flags, tmp_path):
    write_images(tmp_path / "data" / "train", 3)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    assert train("--recipe", "finetune", *flags, data=tmp_path / "data")[0] == 0
