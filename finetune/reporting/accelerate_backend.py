"""Any other tracker of Accelerate's: metrics only, configured in the tracker's own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.reporting.trackers import Results, Start


def start(run: Start) -> str:
    """Start the run; returns a line for the console."""
    name = run.recipe.run.tracker
    scalars = {key: value for key, value in run.config.items() if isinstance(value, str | int | float | None)}
    run.accelerator.init_trackers(run.recipe.run.project, scalars, {"mlflow": {"run_name": run.output.name}})
    return f"{name}: as configured"


def log_summary(tracker: Any, summary: dict[str, Any]) -> None:
    """Nothing: Accelerate has no common interface for final values."""


def log_end(tracker: Any, step: int, results: Results) -> None:
    """Nothing: Accelerate has no common interface for pictures."""
