"""What a tracker keeps of a run besides numbers: its pictures, the worst mistakes, the confusion matrix, the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.evaluate import Scores
from finetune.samples import Draw, Samples

WORST = 20  # mistakes in the table
LARGEST_CHART = 100  # classes of W&B's own confusion chart, whose table takes 10 000 rows


def to_wandb(run: Any, step: int, output: Path, scores: Scores, samples: Samples, classes: list[str]) -> None:
    """Log a W&B run's pictures, its confusion matrix as W&B's own chart, and a table of the worst mistakes.

    The pictures are also logged as such, since a table's images lie outside the run's folder.
    """
    import wandb

    logged: dict[str, Any] = {f"plots/{path.stem}": wandb.Image(str(path)) for path in _pictures(output)}
    truth, guesses = scores.labels.tolist(), scores.guesses[:, 0].tolist()
    if len(classes) <= LARGEST_CHART:
        logged["confusion"] = wandb.plot.confusion_matrix(y_true=truth, preds=guesses, class_names=classes)
    table = wandb.Table(["image", "true", "predicted", "probability", "loss"])
    for k in scores.losses.argsort(descending=True)[:WORST].tolist():
        if truth[k] != guesses[k]:
            seen = wandb.Image(_pixels(samples[Draw(0, k, 1.0)][0]))
            figures = round(scores.probabilities[k, 0].item(), 4), round(scores.losses[k].item(), 4)
            table.add_data(seen, classes[truth[k]], classes[guesses[k]], *figures)
    logged["mistakes"] = table
    run.log(logged, step)


def model_to_wandb(run: Any, output: Path, result: dict[str, Any]) -> None:
    """Log the model folder as an artifact of type `model`, its score as metadata."""
    import wandb

    score = {key: value for key, value in result.items() if "accuracy" in key or "loss" in key or key == "best_epoch"}
    artifact = wandb.Artifact(_allowed(output.resolve().name), "model", metadata=score)
    artifact.add_dir(str(output / "model"))
    run.log_artifact(artifact, aliases=["best"])


def to_tensorboard(writer: Any, output: Path, step: int) -> None:
    """Add a run's pictures to its TensorBoard log."""
    for path in _pictures(output):
        writer.add_image(f"plots/{path.stem}", np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
    writer.flush()


def _pictures(output: Path) -> list[Path]:
    return sorted((output / "plots").glob("*.png"))


def _pixels(image: Tensor) -> np.ndarray:
    """An image (C, H, W), uint8 or in [0, 1], of which one or three channels can be seen, as (H, W, 3) bytes."""
    seen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    seen = seen if seen.dtype.itemsize == 1 else (seen * 255).round().byte()
    return seen.permute(1, 2, 0).numpy()


def _allowed(name: str) -> str:
    """A name that W&B takes for an artifact."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)[:120]
