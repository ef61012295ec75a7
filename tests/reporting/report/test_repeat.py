"""The command of a report makes a run with the same settings."""

import shlex

from written_runs import write_run

from finetune import recipes
from finetune.reporting import records
from finetune.reporting.report import repeat, subject


def test_the_command_gives_the_runs_settings_again(image_folder, tmp_path):
    given = {"hidden": [16, 8], "head": "mlp", "hflip": False, "lr": 0.02, "train_depths": ["head", "4"]}
    read = subject.read(write_run(tmp_path / "run", image_folder, **given, minutes=2.0))
    words = shlex.split(repeat.command(read))
    assert words[:4] == ["python", "train.py", "--recipe", "finetune"]
    again = records.settings(recipes.from_command_line(words[2:]))
    config = read.run.config
    assert {name: value for name, value in again.items() if config[name] != value} == {}
    assert len(again) >= 60
    flags = [flag for flag, _, _ in repeat.differing(read)]
    assert {"--hidden", "--head", "--hflip", "--lr", "--train-depths", "--minutes", "--data"} <= set(flags)
    assert "--optimizer" not in flags
