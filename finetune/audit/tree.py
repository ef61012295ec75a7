"""What lies in an image folder and is not read as an image: stray, hidden and empty things, broken links, loops."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.data.image_files import is_image
from finetune.data.types import SPLITS


def leftovers(top: Path) -> list[tuple[str, str]]:
    """Path below `top` and what is wrong with it, in order."""
    found: list[tuple[str, str]] = []
    tops = {top / name for name in SPLITS if (top / name).is_dir()} or {top}  # folders of class folders
    seen: set[str] = set()

    def note(path: str | Path, what: str) -> None:
        found.append((os.path.relpath(path, top), what))

    for parent, inner, names in os.walk(top, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            note(parent, "links to a folder that is read already" if Path(parent).is_symlink() else "is read already")
            inner.clear()
            continue
        seen.add(real)
        for name in sorted(inner):
            if name.startswith("."):
                note(Path(parent, name), "is a hidden folder, and not read")
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if not inner and not names:
            note(parent, "is an empty folder")
        for name in sorted(names):
            if what := _leftover(Path(parent, name), in_class=Path(parent) not in tops | {top}):
                note(Path(parent, name), what)
    return found


def _leftover(path: Path, in_class: bool) -> str:
    """What is wrong with a file; empty if it is read as an image."""
    if path.is_symlink() and not path.exists():
        return "is a link to nowhere"
    if path.name.startswith("."):
        return "is hidden, and not read"
    if not path.is_file():
        return "is no regular file"
    if not path.stat().st_size:
        return "is empty"
    if not is_image(path.name):
        return "is not read: its extension is none of an image's"
    return "" if in_class else "is not read: it lies in no class folder"
