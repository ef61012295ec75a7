"""TensorBoard: metrics and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from finetune.reporting.trackers import Results, Start


def start(run: Start) -> str:
    """Start the run; returns a line for the console."""
    scalars = {key: value for key, value in run.config.items() if isinstance(value, str | int | float | None)}
    run.accelerator.init_trackers("", scalars)
    return f"TensorBoard: tensorboard --logdir {run.output}"


def log_summary(writer: Any, summary: dict[str, Any]) -> None:
    """Nothing: TensorBoard shows the last values of the metrics."""


def log_end(writer: Any, step: int, results: Results) -> None:
    """Add the run's pictures, at the last epoch."""
    for path in sorted((results.output / "plots").glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))  # (H, W, 3)
        writer.add_image(f"plots/{path.stem}", pixels, results.summary["epochs_run"], dataformats="HWC")
    writer.flush()
