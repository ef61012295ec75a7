"""The verbs of `python -m finetune`, a module each, with `main(arguments) -> exit code`.

A verb's options are a dataclass, their defaults and meanings in it. Heavy imports come after the command line is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import tyro

from finetune.errors import UserError
from finetune.helptext import with_help

Options = TypeVar("Options")


def parse(kind: type[Options], verb: str, arguments: list[str]) -> Options:
    """The options that a command line gives. Prints help or a wrong flag's error itself and exits, with 0 or 2."""
    return tyro.cli(
        with_help(kind),
        args=arguments,
        prog=f"python -m finetune {verb}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        compact_help=False,
        console_outputs=os.environ.get("RANK", "0") == "0",
    )


def must_be_new(flag: str, path: Path | None) -> Path | None:
    """A file that is going to be written; a `UserError` where it exists or its folder does not."""
    if path is None:
        return None
    path = path.expanduser()
    if path.exists():
        raise UserError(f"{flag} {path} exists already. Name another, or remove it.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}. Make it first.")
    return path
