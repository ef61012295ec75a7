"""How to make a run again: the settings that differ from its recipe's defaults, and the command."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any

from finetune import recipes
from finetune.reporting import records, run_folder
from finetune.reporting.report.subject import Subject

PLACES = {"output", "data_root", "cache_dir"}  # of this machine: they change no result


def differing(subject: Subject) -> list[tuple[str, Any, Any]]:
    """The settings that differ: flag, the run's value and the recipe's default, in the order of `--help`."""
    config = subject.run.config
    # The data decide what `auto` means.
    default = records.settings(recipes.from_settings(config["recipe"], {"data": str(config.get("data"))}))
    left_out = PLACES | ({"fold"} if subject.folds else set())
    shown = [name for name in default if name in config and name not in left_out | {"recipe"}]
    plain = records.settings(recipes.load(config["recipe"]).SETTINGS)
    return [
        (f"--{name.replace('_', '-')}", config[name], plain[name])
        for name in shown
        if config[name] != (plain if name == "data" else default)[name]
    ]


def command(subject: Subject) -> str:
    """The command of another run with these settings. Lists of no values, which no flag can give, are left out."""
    words = ["python", "train.py", "--recipe", subject.recipe.recipe]
    for flag, value, _ in differing(subject):
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, list):
            words += [flag, *map(str, value)] if value else []
        else:
            words += [flag, "None" if value is None else str(value)]
    return shlex.join(words)


def written(subject: Subject) -> datetime:
    """When the last record was written, in local time."""
    newest = max((run.folder / run_folder.METRICS).stat().st_mtime for run in subject.runs)
    return datetime.fromtimestamp(newest)
