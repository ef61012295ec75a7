"""The start of a run: one folder for all processes."""

import json
from pathlib import Path

from accelerate import Accelerator, debug_launcher
from support import reset_accelerate

from finetune import recipes
from finetune.reporting import startup, terminal


def begin_under_a_name_of_its_own() -> None:
    """Two runs of two processes, whose clocks differ."""
    recipe = recipes.from_settings("finetune", {"tracker": "none"})
    for run, expected in enumerate(("runs/0", "runs/0-2")):
        accelerator = Accelerator(cpu=True)
        own, console = Path(f"runs/{accelerator.process_index}"), terminal.make_console(False)
        output, _ = startup.begin(recipe, own, {"run": run}, None, accelerator, console)
        assert str(output) == expected
        assert accelerator.project_dir == expected


def test_of_two_runs_that_start_in_one_second_the_second_gets_a_number_on_all_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    debug_launcher(begin_under_a_name_of_its_own, num_processes=2)
    configs = {path.name: json.loads((path / "config.json").read_text()) for path in Path("runs").iterdir()}
    assert configs == {"0": {"run": 0}, "0-2": {"run": 1}}
