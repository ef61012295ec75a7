"""List or clear the kept activations of frozen networks.

python -m finetune cache                    # what is kept, the last used at the end
python -m finetune cache clear              # remove all of it
python -m finetune cache list --cache-dir PATH
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from rich.table import Table


def main(arguments: list[str]) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser("python -m finetune cache", description=__doc__.partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument("--cache-dir", type=Path, help="the folder, where it is not the usual one")
    given = parser.parse_args(arguments)

    from finetune import store, terminal

    folder = given.cache_dir.expanduser() if given.cache_dir else store.default_folder()
    console = terminal.make_console(True)
    if given.action == "clear":
        console.print(f"Removed {store.clear(folder) / 2**20:.1f} MiB from {folder}", soft_wrap=True)
        return 0
    held = store.entries(folder)
    table = Table(box=None, pad_edge=False)
    for name in ("last used", "MiB", "model", "what", "images", "view", "of"):
        table.add_column(name, justify="right" if name == "MiB" else "left", overflow="fold")
    for entry in held:
        told = [entry.about.get(name, "unfinished" if name == "model" else "") for name in ("model", "place", "images")]
        when = f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
        table.add_row(
            when, f"{entry.size / 2**20:.1f}", *told, entry.about.get("view", ""), entry.about.get("data", "")
        )
    if held:
        console.print(table)
    total = sum(entry.size for entry in held)
    console.print(f"{len(held)} files, {total / 2**20:.1f} MiB in {folder}", soft_wrap=True)
    return 0
