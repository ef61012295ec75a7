"""A program's end: its exit code, and what still happens before it."""

import subprocess
import sys

import pytest
from conftest import ROOT

from finetune.entry import exit_code

PROGRAM = """
import atexit, sys
from finetune import entry, errors
{before}
class Late:
    def __del__(self):
        print("taken apart")
late = Late()
def main(arguments):
    atexit.register(print, "handler")
    print("main", *arguments)
    {end}
entry.run(main)
"""


def ran(end: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(end=end, before=before)
    return subprocess.run([sys.executable, "-c", code, "a", "b"], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("end", "code", "said"),
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
def test_a_program_ends_with_its_code_behind_its_handlers_and_is_not_taken_apart(end, code, said):
    done = ran(end)
    assert done.returncode == code
    assert done.stdout == "main a b\nhandler\n"
    assert done.stderr.endswith(said)
    assert ("Traceback" in done.stderr) == ("Error" in end and code == 1)


def test_handlers_that_came_first_are_called_too():
    done = ran("return 3", before="atexit.register(print, 'profile')")
    assert done.returncode == 3
    assert done.stdout.startswith("main a b\nhandler\nprofile\n")


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
def test_only_a_connection_that_another_process_closed_is_told_without_a_traceback(text, monkeypatch, capsys):
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
