"""Ways to choose among the weights before and after fine-tuning and their mixtures: the test accuracy that each gives.

    python -m benchmarks.interpolation runs/best-20250101-120000 runs/best-20250101-130000

Each run is a finished one with `--interpolate` and test images. The mixtures are made from its last checkpoint, and all
test images are scored. Then as many of these as the run had validation images, but at most half, are drawn to choose
by, and the others score what is chosen: the mean over draws has far less chance in it than the run's own choice.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune.commands import evaluate
from finetune.data import run_images
from finetune.inference import predictor
from finetune.training import interpolation, saved_checkpoints
from finetune.training.evaluation import Scores
from finetune.training.interpolation import ALPHAS

DRAWS = 100
BATCH = 64  # images


def scores_of(run: Path) -> tuple[dict[float, Scores], int]:
    """The scores on the run's test images by mixing coefficient, and how many validation images it had."""
    opened = predictor.open_run(run, "no")
    splits = run_images.read(opened.recipe, opened.config, opened.metadata.net.in_channels).splits
    newest = max(saved_checkpoints.names(run / "checkpoints"))
    end = "average" if (newest / "average.safetensors").is_file() else "model"  # --ema 0 has no average
    start, trained = (load_file(newest / f"{name}.safetensors") for name in ("start", end))
    found = {}
    for alpha in ALPHAS:
        mixture = interpolation.mix(start, trained, alpha)
        opened.model.load_state_dict(mixture, strict=False)  # the rest is frozen
        found[alpha] = evaluate.score(opened, splits["test"], BATCH, workers=0)
    return found, len(splits["val"].labels)


def some(scores: Scores, chosen: Tensor) -> Scores:
    """The scores of some images."""
    fields = (scores.losses, scores.predictions, scores.probabilities, scores.labels, scores.logits)
    return Scores(*(field[chosen] for field in fields))


def choices(scores: dict[float, Scores]) -> dict[str, float]:
    """The mixing coefficient that each way chooses, by the scores on validation."""
    values = {alpha: found.accuracy for alpha, found in scores.items()}
    losses = {alpha: interpolation.calibrated_losses(found) for alpha, found in scores.items()}
    no_worse = [alpha for alpha in ALPHAS if values[alpha] >= values[0.0]]
    return {
        "head": 0.0,
        "half-way": 0.5,
        "three quarters": 0.75,
        "trained": 1.0,
        "highest accuracy": max(ALPHAS, key=values.__getitem__),
        "lowest loss": min(no_worse, key=lambda alpha: losses[alpha].mean()),
        "best": interpolation.pick(losses, values),
    }


def measure(run: Path, draws: int) -> dict[str, float]:
    """The mean test accuracy of each way over random draws of validation images."""
    scores, count = scores_of(run)
    images = len(scores[0.0].labels)
    count, generator = min(count, images // 2), torch.Generator().manual_seed(0)
    sums: dict[str, float] = {}
    for _ in range(draws):
        order = torch.randperm(images, generator=generator)
        chosen = choices({alpha: some(found, order[:count]) for alpha, found in scores.items()})
        rest = {alpha: some(found, order[count:]).accuracy for alpha, found in scores.items()}
        sums = {way: sums.get(way, 0.0) + rest[alpha] for way, alpha in chosen.items()}
    return {way: value / draws for way, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--draws", type=int, default=DRAWS, help="random choices of validation images for each run")
    given = parser.parse_args()
    rows = {run: measure(run, given.draws) for run in given.runs}
    ways = list(next(iter(rows.values())))
    print(f"| run | {' | '.join(ways)} |")
    print(f"| --- |{' --- |' * len(ways)}")
    for run, row in rows.items():
        print(f"| {run.name} | {' | '.join(f'{row[way]:.3f}' for way in ways)} |")
    means = [sum(row[way] for row in rows.values()) / len(rows) for way in ways]
    print(f"| mean | {' | '.join(f'{mean:.4f}' for mean in means)} |")


if __name__ == "__main__":
    main()
