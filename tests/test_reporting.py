"""A run's folder is its own."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator, debug_launcher
from conftest import reset_accelerate

from finetune import recipes, reporting
from finetune.errors import UserError


@pytest.mark.parametrize("there", [False, True])
def test_of_two_runs_with_one_output_the_second_is_refused(tmp_path, there):
    output = tmp_path / "runs" / "mine"
    if there:
        output.mkdir(parents=True)
    assert reporting.claim(output, named=True) == output
    with pytest.raises(UserError, match=r"mine exists already\. Name a new folder"):
        reporting.claim(output, named=True)


def begin_with_clocks_that_differ():
    """Two runs of two processes."""
    from finetune import terminal

    recipe = recipes.from_settings("finetune", {"tracker": "none"})
    for run, expected in enumerate(("runs/0", "runs/0-2")):
        accelerator = Accelerator(cpu=True)
        mine, console = Path(f"runs/{accelerator.process_index}"), terminal.make_console(False)
        output, _ = reporting.begin(recipe, mine, {"run": run}, None, accelerator, console)
        assert str(output) == expected
        assert accelerator.project_dir == expected


def test_of_two_runs_of_one_second_the_second_takes_another_name_on_all_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    debug_launcher(begin_with_clocks_that_differ, num_processes=2)
    held = {path.name: json.loads((path / "config.json").read_text()) for path in Path("runs").iterdir()}
    assert held == {"0": {"run": 0}, "0-2": {"run": 1}}
