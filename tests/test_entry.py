"""A program's end: its exit code, and what still happens before it."""

import subprocess
import sys

import pytest
from conftest import ROOT

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
