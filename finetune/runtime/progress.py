"""Progress bars, on terminals only; each disappears when it is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


@contextmanager
def progress(batches: Any, title: str, console: Console) -> Iterator[Iterator[Any]]:
    """The batches under a progress bar that ends with the block."""
    with Progress(*COLUMNS, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield iter(bar.track(batches, total=len(batches), description=title))


def tracked(batches: Any, title: str, console: Console) -> Iterator[Any]:
    """The batches under a bar, for a loop over all of them."""
    with progress(batches, title, console) as shown:
        yield from shown
