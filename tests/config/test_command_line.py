"""The command line: what `--help` shows, how long it takes, and what a wrong flag gets."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from itertools import pairwise

import pytest
from support import ROOT

from finetune import recipes
from finetune.__main__ import COMMANDS
from finetune.config import command_line
from finetune.config.settings import SECTIONS, Recipe

PROGRAM = """
import sys
from contextlib import suppress
from importlib import import_module
from finetune import recipes
for name in sys.argv[1:]:
    with suppress(SystemExit):
        if name in recipes.NAMES:
            recipes.from_command_line(["--recipe", name, "--help"])
        import_module(f"finetune.commands.{name}").main(["--help"])
    print("END")
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of each recipe and of each command, in a terminal of 200 columns."""
    names, environment = [*recipes.NAMES, *COMMANDS], {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-c", PROGRAM, *names]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(zip(names, shown.split("END\n")[:-1], strict=True))


@pytest.mark.parametrize("name", [*recipes.NAMES, *COMMANDS])
def test_help_breaks_no_line_that_has_room_for_the_next_word(helps, name):
    described, box, options = helps[name].partition("╭")
    texts = described.split("\n\n")[1:]
    assert texts
    for text in texts:
        lines = [line for line in text.splitlines() if not line.startswith("    ")]  # commands keep their lines
        assert len(lines) <= 1, text
    columns: dict[int, list[str]] = {}  # of boxes, which stand side by side where there is room
    for row in (box + options).splitlines():
        for cell in re.finditer(r"│ ([^│]*) │", row):
            columns.setdefault(cell.start(), []).append(cell[1])
    breaks = 0
    for line, following in (pair for cells in columns.values() for pair in pairwise(cells)):
        told = line.startswith("    ") or re.match(r"\S+( \S+)* {2,}\S", line)  # behind the flag, or below it
        if told and following.startswith("    "):
            breaks += 1
            word = following.split()[0]
            assert len(line.rstrip()) + 1 + len(word) > len(line), f"{line.strip()} | {following.strip()}"
    flags = sum(line.startswith("-") for cells in columns.values() for line in cells)
    assert flags >= (1 if name in COMMANDS else 50)
    assert breaks >= (0 if name in COMMANDS else 20)


def test_help_lists_every_flag_and_imports_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'accelerate', 'numpy', 'PIL'} & set(sys.modules)"
    code = f"import sys, atexit, train; atexit.register(lambda: print({heavy})); train.main(['--help'])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.endswith("set()\n")
    flags = [field.name.replace("_", "-") for name in SECTIONS for field in fields(getattr(Recipe(), name))]
    assert len(flags) > 50
    assert [flag for flag in flags if f"--{flag}" not in shown and f"--no-{flag}" not in shown] == []


def test_a_wrong_flag_gets_the_nearest_one_and_exit_code_2():
    command = [sys.executable, "train.py", "--epoch", "3"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert "--epochs" in shown.stderr
    assert "Traceback" not in shown.stderr


@dataclass(frozen=True)
class Options:
    """Unused where there is a description."""

    count: int = 3
    """How many there are: a meaning
    on two lines."""
    quiet: bool = False
    """Say nothing."""


def test_a_command_line_is_a_dataclass():
    assert command_line.parse(Options, "prog", []) == Options()
    assert command_line.parse(Options, "prog", ["--count", "5", "--quiet"]) == Options(5, True)
    assert command_line.parse(Options, "prog", ["--quiet"], Options(count=7)) == Options(7, True)


def test_help_has_the_description_and_ends_with_0(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    about = "Count\nthings.\n\n    prog --count 5\n    prog --quiet\n\nThen\nrest."
    with pytest.raises(SystemExit, match=r"^0$"):
        command_line.parse(Options, "prog", ["--help"], about=about)
    shown = capsys.readouterr().out
    assert "usage: prog" in shown
    assert "Count things." in shown
    assert "\n    prog --count 5\n    prog --quiet\n" in shown
    assert "How many there are: a meaning on two lines. (default: 3)" in shown
    assert "Then rest." in shown
    assert "Unused" not in shown


def test_one_rank_of_several_prints_the_help(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match=r"^0$"):
        command_line.parse(Options, "prog", ["--help"])
    assert capsys.readouterr().out == ""
