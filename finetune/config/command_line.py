"""A command line from a dataclass: each field is a flag, its docstring the flag's help."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Annotated, TypeVar

import tyro

from finetune.config.schema import check

Options = TypeVar("Options")


def parse(
    kind: type[Options], prog: str, arguments: list[str], default: Options | None = None, about: str = ""
) -> Options:
    """Parse a command line into a dataclass. `about` replaces the dataclass's docstring in the help.

    Prints help, or the error of a wrong flag, and exits with 0 or 2. Raises `UserError` for a value out of bounds.
    """
    given = {} if default is None else {"default": default}
    options = tyro.cli(
        _with_help(kind),
        args=arguments,
        prog=prog,
        description=_paragraphs(about) or None,
        config=(tyro.conf.OmitArgPrefixes,),
        compact_help=False,
        console_outputs=os.environ.get("RANK", "0") == "0",
        **given,
    )
    nested = any(is_dataclass(getattr(options, field.name)) for field in fields(options))
    if not nested:  # the sections of a recipe are checked by `bounds.resolve`
        check(options)
    return options


def _paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line. Indented blocks keep their lines."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(block if block.startswith("    ") else " ".join(block.split()) for block in blocks)


@functools.cache
def _with_help(kind: type[Options]) -> type[Options]:
    """Give tyro the docstring of each field, here and in nested dataclasses, as one paragraph.

    tyro's own reading of docstrings keeps the source's line break before a line that does not begin with a letter.
    """
    (body,) = ast.parse(inspect.getsource(kind)).body
    for field, text in pairwise(body.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                help_text = tyro.conf.arg(help=" ".join(docstring.split()))
                kind.__annotations__[name] = Annotated[kind.__annotations__[name], help_text]
    for field in fields(kind):
        if is_dataclass(field.default_factory):
            _with_help(field.default_factory)
    return kind
