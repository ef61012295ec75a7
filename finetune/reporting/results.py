"""What a run writes at its end: summary, scores, model card and pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch.utils.data import DataLoader

from finetune.reporting import image_grids, model_card, run_folder
from finetune.reporting.trackers import Tracker
from finetune.training.evaluation import Scores


class ChartProcess:
    """A child process that draws a run's charts from the run's files.

    It imports matplotlib at once, beside the training, and draws after `start`. It ends with the run, however that
    ends: its standard input is closed then. Ctrl-C does not reach it.
    """

    def __init__(self, run: Path) -> None:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "finetune.reporting.charts", str(run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
            text=True,
            start_new_session=True,  # a terminal sends Ctrl-C to all processes of its session's foreground group
        )

    def start(self) -> None:
        """Begin to draw."""
        with suppress(BrokenPipeError):  # it has ended: `wait` raises its error
            self.process.stdin.write("draw\n")
            self.process.stdin.flush()

    def wait(self) -> None:
        """Wait until the charts are drawn. Raises `RuntimeError` with the last line of the child's error."""
        _, errors = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError((errors.strip().splitlines() or [f"exit code {self.process.returncode}"])[-1])


def write(
    output: Path,
    summary: dict[str, Any],
    scores: Scores,
    loaders: dict[str, DataLoader],
    classes: list[str],
    charts: ChartProcess,
    console: Console,
) -> None:
    """Write the results into the run's folder; `scores` are the best epoch's on the validation split.

    An error in a picture is printed and costs no result.
    """
    run_folder.write_json(output / run_folder.SUMMARY, summary)
    scores.save(output / run_folder.SCORES, summary["best_epoch"])
    counts = {name: Counter(loader.dataset.split.labels) for name, loader in loaders.items()}
    model_card.write(
        run_folder.read(output), {name: [found[k] for k in range(len(classes))] for name, found in counts.items()}
    )
    try:
        charts.start()
        image_grids.of_run(output / "plots", loaders, scores, classes)
        charts.wait()
    except Exception as error:
        console.print(f"The pictures could not all be drawn ({type(error).__name__}: {error}).", soft_wrap=True)


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
