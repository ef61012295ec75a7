"""A solved head is the optimum of the documented loss, with a strength that held-out images chose."""

import pytest
import torch
import torch.nn.functional as F

from finetune.training import head_solver
from finetune.training.head_solver import STRENGTHS, folds, solve


def problem(images=60, features=20, classes=3, noise=1.0, seed=0):
    """Features (N, d) of very different spreads, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, features, generator=generator)
    spreads = torch.logspace(-2, 1, features)
    return (centres[labels] + noise * torch.randn(images, features, generator=generator)) * spreads + 3, labels


@pytest.mark.parametrize("l2", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("views", [1, 2])
def test_the_gradient_of_the_loss_is_zero_at_the_solved_head(l2, views):
    x, labels = problem()
    seen = [x, x + 0.1 * problem(seed=1)[0]][:views]
    class_weights = torch.tensor([0.5, 1.0, 2.0])
    fit = solve(seen, labels, class_weights, seed=0, l2=l2).best
    rows, targets = torch.cat(seen).double(), labels.repeat(views)
    std = rows.std(0)
    scale = (std * std.square().mean().sqrt()).sqrt()
    weight = (fit.weight.double() * scale).requires_grad_()  # of standardised features: the penalty is on these
    bias = fit.bias.double().requires_grad_()
    losses = F.cross_entropy(rows / scale @ weight.T + bias, targets, reduction="none")
    loss = (class_weights[targets] * losses).mean() + l2 / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-6
    assert bias.grad.abs().max() < 1e-6
    assert fit.train_loss == pytest.approx(losses.mean().item(), rel=1e-4)


def test_more_features_than_images_are_no_hindrance():
    x, labels = problem(images=12, features=200)
    fit = solve([x], labels, torch.ones(3), seed=0).best
    assert fit.train_accuracy == 1
    assert torch.isfinite(fit.weight).all()


def test_a_feature_that_never_changes_gets_no_weight():
    x, labels = problem()
    x[:, 3] = 7.0
    fit = solve([x], labels, torch.ones(3), seed=0).best
    assert fit.weight[:, 3].abs().max() < 1e-3 * fit.weight.abs().max()


# ---- the strength and the views --------------------------------------------------------------------------------------
def test_the_strength_is_the_one_with_the_lowest_held_out_loss():
    x, labels = problem(noise=1.5)
    solution = solve([x], labels, torch.ones(3), seed=0)
    losses = [fit.folds.loss for fit in solution.path]
    assert [fit.l2 for fit in solution.path] == pytest.approx(STRENGTHS[: len(losses)])
    assert solution.chosen == losses.index(min(losses))
    assert len(losses) == min(len(STRENGTHS), solution.chosen + 1 + head_solver.PATIENCE)


def test_noise_asks_for_a_stronger_penalty():
    few = [problem(noise=noise, features=40) for noise in (0.3, 4.0)]
    clean, noisy = (solve([x], labels, torch.ones(3), seed=0).best.l2 for x, labels in few)
    assert noisy > clean


def test_held_out_scores_are_those_of_heads_that_have_not_seen_the_image():
    x, labels = problem(images=30, features=100)
    labels = labels[torch.randperm(30, generator=torch.Generator().manual_seed(0))]  # nothing to learn
    solution = solve([x, x], labels, torch.ones(3), seed=0)  # the second view would give each image away
    assert solution.path[-1].train_accuracy == 1
    assert solution.best.folds.accuracy < 0.6


@pytest.mark.parametrize("helps", [True, False])
def test_another_view_is_used_where_it_helps_on_held_out_images(helps):
    x, labels = problem(images=90, noise=1.5, features=60)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(x.shape, generator=generator) * x.std(0)
    other = x + noise if helps else x[torch.randperm(90, generator=generator)]  # else with others' labels
    assert solve([x, other], labels, torch.ones(3), seed=0).views == (2 if helps else 1)


@pytest.mark.parametrize(("helpful", "used"), [(1, 1), (2, 2), (4, 4)])
def test_of_two_flips_those_are_used_that_help_on_held_out_images(helpful, used):
    x, labels = problem(images=4 * 90, noise=3.0, features=60)
    views = list(x.split(90))  # each view has further values of the same classes
    generator = torch.Generator().manual_seed(0)
    views[helpful:] = [view[torch.randperm(90, generator=generator)] for view in views[helpful:]]  # of other classes
    assert solve(views, labels[:90], torch.ones(3), seed=0).views == used


def test_a_given_strength_is_fitted_once_without_folds():
    x, labels = problem()
    solution = solve([x, x], labels, torch.ones(3), seed=0, l2=0.02)
    assert [fit.l2 for fit in solution.path] == [0.02]
    assert solution.best.folds is None
    assert solution.views == 2


# ---- folds -----------------------------------------------------------------------------------------------------------
def test_folds_are_stratified_and_hold_out_each_image_once():
    labels = [0] * 13 + [1] * 7 + [2] * 4
    held_out = folds(labels, seed=0)
    assert held_out.shape == (5, 24)
    assert torch.equal(held_out.sum(0), torch.ones(24, dtype=torch.long))
    for cls, images in ((0, 13), (1, 7), (2, 4)):
        counts = held_out[:, torch.tensor(labels) == cls].sum(1)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == images
    assert not torch.equal(held_out, folds(labels, seed=1))


def test_a_classs_only_image_is_always_trained_on():
    held_out = folds([0, 0, 0, 1], seed=0)
    assert not held_out[:, 3].any()
    assert held_out.sum() == 3
    x, labels = problem(images=3)
    solution = solve([x], labels, torch.ones(3), seed=0)  # one image of each class: nothing to hold out
    assert [fit.l2 for fit in solution.path] == [STRENGTHS[len(STRENGTHS) // 2]]


def test_many_images_are_held_out_in_fewer_folds():
    assert len(folds([0, 1] * 500, seed=0)) == 5
    assert len(folds([0, 1] * 800, seed=0)) == 3
    assert len(folds([0, 1] * 5000, seed=0)) == 2


def test_where_a_whole_newton_step_is_too_long_the_loss_falls_all_the_same():
    x, labels = problem(images=40, features=60, classes=5)
    made = head_solver.Problem([x], labels, torch.ones(5))
    everything = torch.ones(1, 40, dtype=torch.bool)
    optimum = made.exact(1e-5, made.fit(everything, 1e-5)[:, 0])
    zero = torch.zeros_like(optimum)
    torch.testing.assert_close(made.exact(1e-5, zero)[:-1], optimum[:-1], rtol=1e-3, atol=1e-3)
    far = 20 * torch.randn(zero.shape, generator=torch.Generator().manual_seed(0))  # there the loss is all but flat
    before, after = (made.as_fit(head, 1e-5).train_loss for head in (far, made.exact(1e-5, far)))
    assert after < before
