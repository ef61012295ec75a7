"""The best linear head on frozen features: L2-regularised multinomial logistic regression, solved to its optimum.

The loss, for N images with feature vectors x, V views of each:

    mean over images and views of  weight · cross_entropy(W z + b)  +  l2 / 2 · |W|²,    z = (x - mean) / scale

`scale` is the square root of each feature's standard deviation times that of their mean variance, so it lies half-way
between raw and standardised features. It is convex, so that there is no rate to choose and no seed. The strength `l2`
is the one with the lowest loss on held-out images: cross-validation on the training images.

The problem is solved in the principal axes of the features, scaled by an estimate of the curvature: L-BFGS (Liu &
Nocedal 1989) then needs few steps. Strengths go from strong to weak, each from the solution of the one before
(Friedman et al. 2010). Newton's method with conjugate gradients (Nash 2000) then makes the chosen one exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
HELD_OUT = 5000  # images times folds, at most; but at least two folds
STRENGTHS = tuple(10 ** (half / 2) for half in range(0, -11, -1))  # 1 to 1e-5
PATIENCE = 2  # strengths without a lower held-out loss, after which the path ends
ROUGH, EXACT = 1e-3, 1e-7  # largest component of the gradient at the end, in scaled coordinates
MEMORY, ITERATIONS = 10, 200  # of L-BFGS
NEWTON_STEPS, CONJUGATE_STEPS, RESIDUAL = 30, 50, 0.1
SUFFICIENT, SMALLEST = 1e-4, 1e-6  # backtracking: the fraction of the promised decrease, and the shortest step
EIGENVALUE = 1e-7  # smallest, as a fraction of the largest: below it, an axis is rounding
EVALUATIONS = 400  # of loss and gradient, of all heads: about what `solve` costs (Caltech-101: 180 to 530)


@dataclass(frozen=True)
class Folds:
    """The scores of held-out images, by heads that were fitted on the others."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    accuracy_sd: float
    """Its standard deviation over the folds."""


@dataclass(frozen=True)
class Fit:
    """A head for one strength, and its scores."""

    l2: float
    weight: Tensor
    """(classes, features), float32, for features as they are."""
    bias: Tensor
    """(classes,), float32."""
    train_loss: float
    """Mean cross-entropy over all views, in nats, without the penalty."""
    train_accuracy: float
    folds: Folds | None = None
    """None where nothing was held out."""


@dataclass(frozen=True)
class Solution:
    """The path of strengths, and the choice."""

    path: list[Fit]
    """From the strongest to the weakest that was tried."""
    chosen: int
    """Position in the path: the lowest held-out loss."""
    views: int
    """Views of each image that it was fitted on."""

    @property
    def best(self) -> Fit:
        return self.path[self.chosen]


class Problem:
    """Features in the coordinates in which they are fitted."""

    def __init__(self, views: Sequence[Tensor], labels: Tensor, class_weights: Tensor) -> None:
        """`views` are (N, features) each, `labels` (N,), `class_weights` (classes,)."""
        self.classes, self.views = len(class_weights), len(views)
        x = torch.cat([view.float() for view in views])  # (V N, features), a copy
        self.labels = labels.repeat(self.views)  # (V N,)
        self.weights = class_weights.to(x)[self.labels]  # (V N,)
        std = x.std(0).clamp_min(1e-6 * x.std())
        self.mean, self.scale = x.mean(0), (std * std.square().mean().sqrt()).sqrt()  # (features,)
        x = x.sub_(self.mean).div_(self.scale)
        if 2 * len(x) <= x.shape[1]:  # few rows: several times faster
            _, roots, axes = torch.linalg.svd(x.double(), full_matrices=False)
            curvature, axes = roots.square() / len(x), axes.T
        else:
            curvature, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
        kept = curvature > EIGENVALUE * curvature.max()
        self.curvature, self.axes = curvature[kept], axes[:, kept]  # (axes,), (features, axes)
        self.z = x @ self.axes.to(x)  # (V N, axes)

    def fit(self, kept: Tensor, l2: float, start: Tensor | None = None) -> Tensor:
        """Roughly the best heads for one strength, each for some of the images, (axes + 1, K, classes).

        The last row holds the biases. `kept` (K, N) says for which images; all K heads are fitted together. `start`
        holds the heads for another strength.
        """
        z, shape = self.z, (self.z.shape[1] + 1, len(kept), self.classes)
        weights = kept.T.repeat(self.views, 1) * self.weights[:, None] / (self.views * kept.sum(1))  # (V N, K)
        start = z.new_zeros(shape) if start is None else start
        unit = self._unit(start[:, -1], l2)[..., None]  # (axes + 1, 1, 1)
        parameters = (start / unit).requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=ITERATIONS, history_size=MEMORY, line_search_fn="strong_wolfe", tolerance_grad=ROUGH
        )
        own = self.labels[:, None, None].expand(-1, len(kept), 1)  # (V N, K, 1)

        @torch.no_grad()
        def closure() -> Tensor:
            heads = parameters * unit
            logits = (z @ heads[:-1].flatten(1)).view(-1, *shape[1:]) + heads[-1]  # (V N, K, classes)
            log_probabilities = logits.log_softmax(2)
            losses = -log_probabilities.gather(2, own)[..., 0]  # (V N, K)
            residuals = _minus_one_hot(log_probabilities.exp_(), own) * weights[..., None]
            gradient = _transposed(z, residuals.flatten(1)).view(-1, *shape[1:]) + l2 * heads[:-1]
            parameters.grad = torch.cat([gradient, residuals.sum(0, keepdim=True)]) * unit
            return (losses * weights).sum() + l2 / 2 * heads[:-1].square().sum()

        optimizer.step(closure)
        return parameters.detach() * unit

    def exact(self, l2: float, start: Tensor) -> Tensor:
        """The best head for all images, (axes + 1, classes), float64, from a rough one.

        Newton's method with backtracking: loss and gradient in float64, the step by conjugate gradients in float32.
        """
        z, z64 = self.z, self.z.double()
        weights = (self.weights / len(z))[:, None]  # (V N, 1)
        own = self.labels[:, None]

        def loss(head: Tensor) -> tuple[Tensor, Tensor]:
            log_probabilities = (_product(z64, head[:-1]) + head[-1]).log_softmax(1)  # (V N, classes)
            fit = -(log_probabilities.gather(1, own) * weights).sum()
            return fit + l2 / 2 * head[:-1].square().sum(), log_probabilities

        head = start.double()
        value, log_probabilities = loss(head)
        for _ in range(NEWTON_STEPS):
            residuals = _minus_one_hot(log_probabilities.exp(), own) * weights
            gradient = torch.cat([_transposed(z64, residuals) + l2 * head[:-1], residuals.sum(0, keepdim=True)])
            unit = self._unit(head, l2)
            if (gradient * unit).abs().max() < EXACT:
                break
            p = log_probabilities.exp().float()

            def curvature_times(step: Tensor, p: Tensor = p) -> Tensor:
                change = _product(z, step[:-1]) + step[-1]
                change = p * (change - (p * change).sum(1, keepdim=True)) * weights
                return torch.cat([_transposed(z, change) + l2 * step[:-1], change.sum(0, keepdim=True)])

            size = gradient.abs().max()  # float32 has too few exponents for a small gradient's square
            step = size * _conjugate_gradients(curvature_times, (gradient / size).float(), unit.square()).double()
            rate, promised = 1.0, SUFFICIENT * (gradient * step).sum()
            while rate > SMALLEST:  # where the classes are all but separated, a whole step can be far too long
                after = loss(head - rate * step)
                if after[0] <= value - rate * promised:
                    break
                rate /= 2
            else:
                break  # rounding: no step is better
            head, (value, log_probabilities) = head - rate * step, after
        return head

    def _unit(self, head: Tensor, l2: float) -> Tensor:
        """The scale of each coordinate (axes + 1, 1): the inverse root of the loss's curvature, estimated at a head.

        In a logit the curvature is p (1 - p), here its mean over rows and classes.
        """
        probabilities = self.logits(head, self.z).softmax(1)
        spread = (probabilities - probabilities.square()).mean().clamp_min(1e-6)
        return torch.cat([spread * self.curvature.to(spread) + l2, spread[None]]).rsqrt()[:, None]

    def logits(self, head: Tensor, z: Tensor) -> Tensor:
        """The logits (rows, classes) of a head (axes + 1, classes) for some rows of z (rows, axes)."""
        return z @ head[:-1].to(z) + head[-1].to(z)

    def as_fit(self, head: Tensor, l2: float) -> Fit:
        """A head (axes + 1, classes) for features as they are, with its scores on all rows."""
        head = head.double()
        weight = (self.axes @ head[:-1]).T / self.scale.double()  # (classes, features)
        bias = head[-1] - weight @ self.mean.double()
        logits = self.logits(head, self.z)
        accuracy = (logits.argmax(1) == self.labels).double().mean().item()
        return Fit(l2, weight.float().cpu(), bias.float().cpu(), F.cross_entropy(logits, self.labels).item(), accuracy)

    def score(self, heads: Tensor, held_out: Tensor) -> Folds:
        """Scores of heads (axes + 1, K, classes) on the first view of the images `held_out` (K, N) from each."""
        images, losses, accuracies, sizes = held_out.shape[1], [], [], []
        for k, held in enumerate(held_out):
            labels = self.labels[:images][held]
            logits = self.logits(heads[:, k], self.z[:images][held])
            losses.append(F.cross_entropy(logits, labels, reduction="sum").item())
            accuracies.append((logits.argmax(1) == labels).double().mean().item())
            sizes.append(len(labels))
        accuracy = float(np.average(accuracies, weights=sizes))
        return Folds(sum(losses) / sum(sizes), accuracy, float(np.std(accuracies)))


def solve(
    views: Sequence[Tensor], labels: Tensor, class_weights: Tensor, seed: int, l2: float | None = None
) -> Solution:
    """The best head on features (N, features), one tensor per view; the first is the evaluation transform's.

    The folds choose the strength, and how many views are used: all, the first half, and so on to the first alone, since
    each flip doubles them. With `l2`, or where no class has two images to hold one out, all views and this strength
    (else the middle one) are used.
    """
    held_out = folds(labels.tolist(), seed).to(labels.device)  # (K, N)
    problem = Problem(views, labels, class_weights)
    if l2 is not None or not len(held_out):
        strength = l2 or STRENGTHS[len(STRENGTHS) // 2]
        everything = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
        rough = problem.fit(everything, strength)[:, 0]
        return Solution([problem.as_fit(problem.exact(strength, rough), strength)], 0, len(views))
    solution = _path(problem, held_out)
    while len(views) > 1:
        views = views[: len(views) // 2]
        best, fewer = solution.best, Problem(views, labels, class_weights)
        if fewer.score(fewer.fit(~held_out, best.l2), held_out).loss < best.folds.loss:
            solution = _path(fewer, held_out)
    return solution


def folds(labels: Sequence[int], seed: int) -> Tensor:
    """The images to hold out from each fit (K, N): `FOLDS` stratified parts, or fewer of them where images are many.

    Classes start at different folds. A class's only image is never held out; a fold without images is left out.
    """
    found = torch.zeros(FOLDS, len(labels), dtype=torch.bool)
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    for label, positions in by_class.items():
        if len(positions) > 1:
            random.Random(f"{seed}/{label}").shuffle(positions)
            for k, position in enumerate(positions):
                found[(k + label) % FOLDS, position] = True
    return found[found.any(1)][: fold_count(len(labels))]


def fold_count(images: int) -> int:
    """The folds of so many images, at most."""
    return min(FOLDS, max(2, HELD_OUT // images))


def _path(problem: Problem, held_out: Tensor) -> Solution:
    """Fit strengths from the strongest on, until the held-out loss has stopped falling; then the best one exactly.

    `held_out` (K, N) are the folds. All heads of a strength, the folds' and that of all images, are fitted together.
    """
    everything = torch.ones_like(held_out[:1])
    kept = torch.cat([~held_out, everything])  # (K + 1, N)
    heads, path, rough = None, [], []
    for l2 in STRENGTHS:
        heads = problem.fit(kept, l2, heads)  # (axes + 1, K + 1, classes)
        scores = problem.score(heads[:, :-1], held_out)
        path.append(replace(problem.as_fit(heads[:, -1], l2), folds=scores))
        rough.append(heads[:, -1])
        losses = [fit.folds.loss for fit in path]
        chosen = losses.index(min(losses))
        if len(path) - 1 - chosen >= PATIENCE:
            break
    best = path[chosen]
    path[chosen] = replace(problem.as_fit(problem.exact(best.l2, rough[chosen]), best.l2), folds=best.folds)
    return Solution(path, chosen, problem.views)


def _product(z: Tensor, values: Tensor) -> Tensor:
    """z @ values, 1.4 times as fast on a CPU where `values` has few columns."""
    return (values.T @ z.T).T


def _transposed(z: Tensor, values: Tensor) -> Tensor:
    """z.T @ values, four times as fast on a CPU where `values` has few columns."""
    return (values.T @ z).T


def _minus_one_hot(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Subtract 1 in place at each row's label; `labels` has the same axes, the last of length 1."""
    return probabilities.scatter_add_(-1, labels, probabilities.new_full((), -1.0).expand(labels.shape))


def _conjugate_gradients(times: Callable[[Tensor], Tensor], right: Tensor, scale: Tensor) -> Tensor:
    """Roughly the x with times(x) = right, for a symmetric positive `times`, preconditioned by `scale`."""
    scale = scale.to(right)
    x, residual = torch.zeros_like(right), right
    scaled = scale * residual
    direction, product = scaled, (residual * scaled).sum()
    first = product
    for _ in range(CONJUGATE_STEPS):
        image = times(direction)
        rate = product / (direction * image).sum()
        x, residual = x + rate * direction, residual - rate * image
        scaled = scale * residual
        before, product = product, (residual * scaled).sum()
        if product <= RESIDUAL**2 * first:
            break
        direction = scaled + product / before * direction
    return x
