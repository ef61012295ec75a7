"""The changes that docs/architecture.md describes work as they are written."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
from support import ROOT

from finetune.models import architectures

GUIDE = (ROOT / "docs" / "architecture.md").read_text()


def code(heading: str) -> str:
    """The Python block of a section."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", GUIDE, re.S | re.M).group(1)
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    return block


@pytest.mark.slow
def test_the_recipe_runs_in_a_copy_of_the_package(image_folder, tmp_path):
    block = code("Add a recipe")
    name = re.search(r'recipe="(\w+)"', block).group(1)
    assert not (ROOT / "finetune" / "recipes" / f"{name}.py").exists()
    shutil.copy(ROOT / "train.py", tmp_path)
    shutil.copytree(ROOT / "finetune", tmp_path / "finetune", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "finetune" / "recipes" / f"{name}.py").write_text(block)

    def train(*flags: str) -> str:
        command = [sys.executable, "train.py", "--recipe", name, *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert block.split("\n")[0].strip('"') in train("--help")
    flags = ("--data", str(image_folder), "--model", "resnet18", "--weights", "none", "--image-size", "32")
    plan = json.loads(train("--plan", "--json", "--body-scale", "0.5", *flags))
    assert [row["start"] for row in plan["rows"]] == [None, None, 0, 0, 0, 0]
    assert [row["lr"] for row in plan["rows"][2:]] == [1.5e-4, 1.5e-4, 1.5e-4, 3e-4]


def test_the_row_is_the_tables():
    *imports, row = ast.parse(code("Add an architecture")).body
    assert len(imports) == 1
    family = eval(compile(ast.Expression(row.value), "row", "eval"), {"Family": architectures.Family})
    assert family == architectures.find("convnext_tiny")
