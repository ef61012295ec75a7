"""`cache`: list or clear the cache."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import tyro

from finetune.config.command_line import parse
from finetune.errors import UserError


@dataclass(frozen=True)
class Options:
    """List or clear cached activations and decoded images."""

    action: tyro.conf.Positional[Literal["list", "clear"]] = "list"
    """list: the files, most recently used last. clear: delete all files."""
    cache_dir: Path | None = None
    """The cache folder. None: ~/.cache/finetune/features."""


def main(arguments: list[str]) -> int:
    """Print the list, or clear the cache."""
    options = parse(Options, "python -m finetune cache", arguments)

    from rich.table import Table

    from finetune.data import tensor_cache
    from finetune.reporting import terminal

    folder = tensor_cache.folder(options.cache_dir)
    if options.cache_dir and not folder.is_dir():
        raise UserError(f"--cache-dir {folder} is no folder. Name the one that your runs were given.")
    console = terminal.make_console(main_process=True)
    if options.action == "clear":
        console.print(f"Deleted {tensor_cache.clear(folder) / 2**20:.1f} MiB from {folder}", soft_wrap=True)
        return 0
    entries = tensor_cache.entries(folder)
    table = Table(box=None, pad_edge=False)
    for name in ("last used", "MiB", "model", "what", "images", "view", "of"):
        table.add_column(name, justify="right" if name == "MiB" else "left", overflow="fold")
    for entry in entries:
        about = {"model": "unfinished"} | entry.about
        cells = [about.get(name, "") for name in ("model", "place", "images", "view", "data")]
        table.add_row(f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}", f"{entry.size / 2**20:.1f}", *cells)
    if entries:
        console.print(table)
    total = sum(entry.size for entry in entries)
    console.print(f"{len(entries)} files, {total / 2**20:.1f} MiB in {folder}", soft_wrap=True)
    return 0
