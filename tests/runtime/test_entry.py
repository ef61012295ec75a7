"""A program's end: its exit code, and one message for an error, however many processes find it."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest
from support import ROOT, wait_for, with_defaults

from finetune.data import dataset
from finetune.errors import UserError
from finetune.runtime import entry
from finetune.runtime.entry import exit_code
from finetune.training import param_groups

PROGRAM = """
import atexit, sys
from finetune import errors
from finetune.runtime import entry
def main(arguments):
    atexit.register(print, "handler")
    print("main", *arguments)
    {end}
entry.run(main)
"""


def test_the_collector_rests_during_a_programs_imports_and_no_other(monkeypatch):
    states = []
    try:
        for is_program in (False, True):
            monkeypatch.setattr(entry, "_is_program", is_program)
            before = gc.get_freeze_count()
            with entry.imports():
                resting = not gc.isenabled()
            states.append((resting, gc.get_freeze_count() > before, gc.isenabled()))
    finally:
        gc.unfreeze()
    assert states == [(False, False, True), (True, True, True)]


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("return 0", 0, ""),
        ("return errors.STOPPED", 75, ""),
        ("raise errors.UserError('no such thing')", 2, "error: no such thing\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise BrokenPipeError", 141, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise ZeroDivisionError('a fault')", 1, "ZeroDivisionError: a fault\n"),
    ],
)
def test_a_program_ends_with_its_exit_code_and_runs_its_handlers(end, code, message):
    command = [sys.executable, "-c", PROGRAM.format(end=end), "a", "b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == ("main a b\n" if code == 141 else "main a b\nhandler\n")
    assert done.stderr.endswith(message)
    assert ("Traceback" in done.stderr) == ("Error" in end and code == 1)


def test_a_reader_that_closes_early_ends_the_program_silently():
    code = PROGRAM.format(end="for k in range(100_000): print(k)")
    command = f'{sys.executable} -c "$1" a b | head -n 1'
    done = subprocess.run(["bash", "-c", command, "-", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("main a b\n", "")


CLOSED = [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:4711: Connection reset by peer",
    "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.27.5\n"
    "Last error:\nsocketProgress: Connection closed by remote peer node2<42830>",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
]
OWN = [
    "NCCL error in: NCCLUtils.cpp:77, invalid usage, NCCL version 2.27.5\nDuplicate GPU detected : rank 1 and rank 0",
    "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.27.5\nCuda failure 'out of memory'",
    "[enforce fail at gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7",
    "Timed out after 601 seconds waiting for clients. 1/2 clients joined the TCPStore.",
]


@pytest.mark.parametrize("text", [*CLOSED, *OWN])
def test_only_a_connection_that_another_process_closed_is_reported_without_a_traceback(text, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    def main(arguments):
        raise RuntimeError(text)

    if text in CLOSED:
        assert exit_code(main, []) == 1
        assert capsys.readouterr().err == "Rank 1: another process of this run ended, so this one ends.\n"
    else:
        with pytest.raises(RuntimeError) as raised:  # with its traceback
            exit_code(main, [])
        assert str(raised.value) == text


# ---- several processes ----------------------------------------------------------------------------------------------
FLAGS = ("--recipe", "finetune", "--epochs", "5000", "--checkpoint-every", "1")


def test_an_image_that_goes_bad_on_one_rank_ends_all_with_its_message_first(start, monkeypatch):
    original, begun = dataset.load, time.monotonic()

    def load(item, channels):
        if time.monotonic() - begun > 3 and str(item).endswith("train/blue/03.jpg"):
            raise UserError(f"{item} does not decode: it is gone")
        return original(item, channels)

    monkeypatch.setattr(dataset, "load", load)
    run = start("run", *FLAGS, "--no-cache-images", "--workers", "1", processes=2)
    assert sorted(run.wait(60)) == [1, 2], run.said
    assert run.said.count("error: ") == 1
    assert "blue/03.jpg does not decode: it is gone" in run.said
    assert run.said.index("it is gone") < run.said.index("another process of this run ended")
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_an_error_that_one_process_finds_late_is_printed_too(start, monkeypatch):
    original = param_groups.make_optimizer

    def make_optimizer(*arguments):
        if os.environ["RANK"] == "0":
            raise UserError("found by the main process alone")
        return original(*arguments)

    monkeypatch.setattr(param_groups, "make_optimizer", make_optimizer)
    run = start("run", *FLAGS, processes=2)
    assert run.wait(60) == [2, 1], run.said
    assert run.said.count("error: found by the main process alone") == 1


def test_a_rank_that_is_killed_ends_the_other_with_a_line_that_says_so(start):
    run = start("run", *FLAGS, processes=2)
    wait_for("checkpoints/0001-*", run)
    run.signal(signal.SIGKILL, rank=1)
    assert run.wait(60) == [1, -signal.SIGKILL], run.said
    assert "Rank 0: another process of this run ended" in run.said
    assert "Traceback" not in run.said


def test_an_error_that_all_processes_find_is_printed_once(start):
    run = start("run", "--recipe", "last_layers", "--layers", "99", processes=2)
    assert run.wait(60) == [2, 2], run.said
    assert run.said.count("error: last_layers: --layers 99") == 1, run.said
    assert "omitting" not in run.said, "no warning of torch about the connection"


@pytest.mark.slow
def test_a_run_whose_reader_closes_early_ends_with_141_and_can_be_resumed(image_folder, tmp_path):
    words = with_defaults(["--data", str(image_folder), "--output", str(tmp_path / "run")])
    command = f'{sys.executable} train.py "$@" | head -n 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
