"""What `--help` shows: docstrings without the line breaks of the source."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from itertools import pairwise
from typing import Annotated, TypeVar

import tyro

Kind = TypeVar("Kind", bound=type)


def paragraphs(text: str) -> str:
    """A docstring, each paragraph in one line; what is indented stays as it is."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(block if block.startswith("    ") else " ".join(block.split()) for block in blocks)


@functools.cache  # once for each class
def with_help(kind: Kind) -> Kind:
    """A dataclass of options, whose fields tell tyro their docstrings as one paragraph each.

    By itself tyro takes a field's docstring as it stands in the source, where the second line is indented, and keeps
    the break before a line that does not begin with a letter.
    """
    (body,) = ast.parse(inspect.getsource(kind)).body
    for field, text in pairwise(body.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                shown = tyro.conf.arg(help=" ".join(told.split()))
                kind.__annotations__[name] = Annotated[kind.__annotations__[name], shown]
    return kind
