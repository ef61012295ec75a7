"""The charts' process draws while the run draws its image grids, ends with the run, and costs it nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import ROOT

PICTURES = ["augmentations", "calibration", "confusion", "curves", "per_class", "predictions", "top_losses"]
FLAGS = "--model shufflenet_v2_x0_5 --weights none --image-size 32 --epochs 1 --batch-size 8 --tracker none"
TRAIN = """
import sys, train
from pathlib import Path
from finetune.reporting import results
{before}
print("code", train.main(sys.argv[1:]), "matplotlib" in sys.modules)
"""
RUN = """
import sys
from pathlib import Path
from finetune.reporting.results import ChartProcess
charts = ChartProcess(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def trained(image_folder: Path, output: Path, before: str = "") -> str:
    """What a run prints that starts with some code of the test."""
    words = ["--data", str(image_folder), "--output", str(output), *FLAGS.split()]
    command = [sys.executable, "-c", TRAIN.format(before=before), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_run_draws_all_its_pictures_without_importing_matplotlib(image_folder, tmp_path):
    output = tmp_path / "run"
    assert trained(image_folder, output).endswith("code 0 False\n")
    assert sorted(path.name for path in (output / "plots").iterdir()) == [f"{name}.png" for name in PICTURES]


START = "start = results.ChartProcess.start; results.ChartProcess.start = lambda self: ({}, start(self))"
FAILURES = {
    START.format("self.process.kill(), self.process.wait()"): "RuntimeError: exit code -9",
    START.format(
        "(Path(self.process.args[-1]) / 'metrics.jsonl').unlink()"
    ): "RuntimeError: finetune.errors.UserError: ",
    "from finetune.reporting import image_grids; image_grids.of_run = None": "TypeError",
}


@pytest.mark.parametrize(("before", "reason"), FAILURES.items())
def test_pictures_that_cannot_be_drawn_cost_one_message_and_no_result(image_folder, tmp_path, before, reason):
    printed = trained(image_folder, tmp_path / "run", before)
    assert printed.endswith("code 0 False\n")
    assert printed.count("could not all be drawn") == 1
    assert f"The pictures could not all be drawn ({reason}" in printed
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_the_chart_process_ends_with_the_run(tmp_path, number):
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.PIPE) as run:  # fmt: skip
        assert run.stdout.readline() == "ready\n"
        (child,) = psutil.Process(run.pid).children()
        assert psutil.Process(child.pid).is_running()
        if number:
            run.send_signal(number)
        else:
            run.stdin.close()
        run.wait(20)
        child.wait(20)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_does_not_reach_the_chart_process(tmp_path):
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as run:  # fmt: skip
        assert run.stdout.readline() == "ready\n"
        (child,) = psutil.Process(run.pid).children()
        group = int(subprocess.run(["ps", "-o", "pgid=", str(child.pid)], capture_output=True, text=True).stdout)
        assert group != run.pid, "a terminal signals its foreground process group"
        run.stdin.close()
