"""What strangers put into files, and a check of what commands do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def call_all(call: Callable[..., tuple[int, str, str]], commands: Iterable[tuple[Any, ...]]) -> list[int]:
    """The exit codes of commands, none of which crashes or lets an escape sequence through."""
    codes = []
    for command in commands:
        code, said, error = call(*command)
        assert code in (0, 2), (command, error)
        assert "\x1b]0;" not in said + error, f"{command[0]} let an escape sequence through"
        codes.append(code)
    return codes
