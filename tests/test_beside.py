"""A process beside the run works for it, ends with it, and costs it nothing where it fails."""

import signal
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is copied")
FLAGS = "--model shufflenet_v2_x0_5 --weights none --image-size 32 --epochs 1 --batch-size 8 --tracker none"
TRAIN = """
import sys, train
from finetune import limits
limits.share = lambda: 2
print("code", train.main(sys.argv[1:]), "matplotlib" in sys.modules)
"""
BEGIN = """
import sys
from finetune.beside import Beside
worker = Beside("shutil")
"""


def begun(code, *words):
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(code, *words):
    run = begun(code, *words)
    assert run.wait(60) == 0
    with run:
        return run.stdout.read()


def test_a_run_draws_its_charts_without_importing_matplotlib(image_folder, tmp_path):
    output = tmp_path / "run"
    words = said(TRAIN, "--data", str(image_folder), "--output", str(output), *FLAGS.split())
    assert words.endswith("code 0 False\n")
    names = ["augmentations", "calibration", "confusion", "curves", "per_class", "predictions", "top_losses"]
    assert sorted(path.name for path in (output / "plots").iterdir()) == [f"{name}.png" for name in names]


def test_charts_that_cannot_be_drawn_cost_no_result(image_folder, tmp_path):
    for end, why in (
        ("worker.call = lambda *_: process.kill() or own(*_)", "RuntimeError: the process beside this one"),
        ("worker.call = lambda name, *_: own('no_chart', *_)", "AttributeError"),
    ):
        output = tmp_path / why[:7]
        more = f"""
from finetune import reporting
make = reporting.charts
def charts(recipe):
    import psutil
    worker = make(recipe)
    own, process = worker.call, psutil.Process().children()[0]
    {end}
    return worker
reporting.charts = charts
"""
        words = said(more + TRAIN, "--data", str(image_folder), "--output", str(output), *FLAGS.split())
        assert words.endswith("code 0 False\n")
        assert f"could not all be drawn ({why}" in words
        assert (output / "summary.json").exists()


def test_what_a_function_raises_is_raised_here(tmp_path):
    end = (
        "try: worker.call('copyfile', sys.argv[1], sys.argv[2])\nexcept Exception as error: print(type(error).__name__)"
    )
    (tmp_path / "a").write_text("a")
    assert said(BEGIN + end, str(tmp_path / "b"), str(tmp_path / "c")) == "FileNotFoundError\n"
    assert said(BEGIN + end, str(tmp_path / "a"), str(tmp_path / "c")) == ""
    assert (tmp_path / "c").read_text() == "a"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_it_ends_with_the_run_and_hears_no_signal(number):
    run = begun(f"{BEGIN}worker.call('disk_usage', '/'); print('ready', flush=True); sys.stdin.read()")
    assert run.stdout.readline()
    (worker,) = psutil.Process(run.pid).children()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        worker.send_signal(each)
    with pytest.raises(psutil.TimeoutExpired):
        worker.wait(0.5)
    if number:
        run.send_signal(number)
    run.stdin.close()
    run.wait(20)
    worker.wait(20)
    run.stdout.close()


def test_nothing_that_is_imported_at_the_start_keeps_the_exit_from_being_quick():
    assert said("import atexit, train; print(atexit._ncallbacks())") == "0\n"
