"""The text of `--help`."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from conftest import ROOT

from finetune import recipes

VERBS = ("predict", "evaluate", "compare", "plot", "push", "export")
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
    """The help of each recipe and of each verb, in a terminal of 200 columns."""
    names, environment = [*recipes.NAMES, *VERBS], {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-c", PROGRAM, *names]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(zip(names, shown.split("END\n")[:-1], strict=True))


@pytest.mark.parametrize("name", [*recipes.NAMES, *VERBS])
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
    assert flags >= (1 if name in VERBS else 50)
    assert breaks >= (0 if name in VERBS else 20)
