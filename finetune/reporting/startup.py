"""The start of a run after its plan: its folder and tracker; `--preview` and `--lr-find`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.models.network import Network
from finetune.reporting import run_folder
from finetune.reporting.trackers import Tracker
from finetune.runtime import devices
from finetune.training import lr_find, resume, schedule
from finetune.training.saved_checkpoints import Found


def begin(
    recipe: Recipe,
    output: Path,
    config: dict[str, Any],
    found: Found | None,
    accelerator: Accelerator,
    console: Console,
) -> tuple[Path, Tracker]:
    """Make or clean up the run's folder, start the tracker and print both. Collective.

    Returns the folder's final path, the same on all processes, and the tracker. Raises `UserError` where the folder
    cannot be written or belongs to another run.
    """
    accelerator.wait_for_everyone()  # until each process has checked that the folder is new
    history = found.state["history"] if found else []
    output = devices.from_main(accelerator, lambda: run_folder.prepare(recipe, output, config, history))
    accelerator.project_configuration.set_directories(str(output))
    accelerator.project_configuration.logging_dir = str(output / recipe.run.tracker)
    tracker = Tracker(accelerator, recipe, config, output, found.state["tracker"] if found else "")
    if recipe.run.resume:
        console.print(f"\n{resume.report(output, found, config, recipe.training.epochs)}", soft_wrap=True)
    console.print(f"\n{tracker.status}\nThe run's folder is {output}\n", soft_wrap=True)
    return output, tracker


def preview(output: Path, loaders: dict[str, DataLoader], classes: list[str], console: Console) -> int:
    """`--preview`: draw the augmentations and print where; the exit code."""
    from finetune.reporting import image_grids

    path = image_grids.preview(output / "plots", loaders, classes)
    console.print(f"Augmentations  {path}", soft_wrap=True)
    return 0


def find_lr(
    recipe: Recipe,
    network: Network,
    loader: DataLoader,
    classes: int,
    accelerator: Accelerator,
    output: Path,
    console: Console,
) -> int:
    """`--lr-find`: run the range test, draw it and print the flag to use; the exit code. Collective."""
    tried, losses = lr_find.range_test(recipe, network, loader, classes, accelerator)
    lr, path = lr_find.suggest(tried, losses), output / "plots" / "lr_find.png"
    own = schedule.peak_rate(recipe.training.lr)
    if accelerator.is_main_process:
        from finetune.reporting import charts

        charts.rate_test(path, tried, losses, lr, own)
    console.print(
        f"\nThe loss fell steadily up to a learning rate of about {lr:.1e} (the recipe's is {own:.1e}). To "
        f"train with it:\n    --lr {lr:.1e}\nChart  {path}",
        soft_wrap=True,
    )
    return 0
