"""What a run writes at its end: summary, scores, model card and pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from finetune.models.explain import Explainer
from finetune.models.network import Network
from finetune.reporting import image_grids, model_card, run_folder, terminal
from finetune.reporting.trackers import Tracker
from finetune.training.evaluation import Scores


def log(record: dict[str, Any], epochs: int, improved: bool, output: Path, tracker: Tracker, console: Console) -> None:
    """Write an epoch's record to metrics.jsonl, to the tracker and, as a line, to the console."""
    if tracker.accelerator.is_main_process:
        run_folder.append_record(output, record)
        tracker.log_epoch(record)
    console.print(terminal.epoch_line(record, epochs, improved), soft_wrap=True)


def print_interpolation(console: Console, record: dict[str, Any]) -> None:
    """Print the record of weights between those before and after training as a line."""
    console.print(terminal.interpolation_line(record), soft_wrap=True)


def write(
    output: Path,
    summary: dict[str, Any],
    by_split: dict[str, Scores],
    loaders: dict[str, DataLoader],
    classes: list[str],
    network: Network,
    console: Console,
) -> None:
    """Write the results into the run's folder; `by_split` are the scores of the saved model, the network's.

    An error in a picture is printed and costs no result.
    """
    scores = by_split["val"]
    if "test" in by_split:
        by_split["test"].save(output / run_folder.TEST_SCORES, summary["best_epoch"], logits=True)
    run_folder.write_json(output / run_folder.SUMMARY, summary)
    scores.save(output / run_folder.SCORES, summary["best_epoch"])
    counts = {name: Counter(loader.dataset.split.labels) for name, loader in loaders.items()}
    model_card.write(
        run_folder.read(output), {name: [found[k] for k in range(len(classes))] for name, found in counts.items()}
    )
    try:
        draw(output, loaders, scores, classes, network)
    except Exception as error:
        console.print(f"The pictures could not all be drawn ({type(error).__name__}: {error}).", soft_wrap=True)


def draw(output: Path, loaders: dict[str, DataLoader], scores: Scores, classes: list[str], network: Network) -> None:
    """Draw all pictures into the run's plots/."""
    model = network.evaluated.requires_grad_(False)  # else gradient checkpointing would compute its blocks twice
    explainer = Explainer(model, network.family, network.preprocess)
    image_grids.of_run(output / "plots", loaders, scores, classes, explainer)

    from finetune.reporting import charts  # imports matplotlib, which takes long and may fail

    charts.of_run(output)


def report_stop(
    output: Path, checkpoint: Path, signal: str, accelerator: Accelerator, tracker: Tracker, console: Console
) -> None:
    """Print that the run was stopped on request and how to resume it, and leave a file that says so. Collective."""
    if accelerator.is_main_process:
        (output / run_folder.RESUME_ME).write_text(f"Stopped by {signal or 'another process'} after {checkpoint}.\n")
    tracker.finish()
    console.print(
        f"\nStopped{f' by {signal}' if signal else ''}. Everything is in {checkpoint}.\n"
        f"Go on with the same command and --resume --output {output}",
        soft_wrap=True,
    )
    accelerator.wait_for_everyone()  # a launcher ends all processes when the first one ends
