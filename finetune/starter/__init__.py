"""The built-in image sets: made by code, once, in the user's cache folder, and read like any other image folder."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.errors import UserError

PARTS = {"starter": "target", "starter-source": "source"}


def path(data: str) -> str:
    """`--data` as a folder: one of the built-in sets is made on first use, anything else is given back as it is."""
    if data not in PARTS:
        return data
    from finetune.starter import images

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
    folder = cache / f"starter-{images.VERSION}" / PARTS[data]
    if not folder.is_dir():
        try:
            images.write(folder, PARTS[data])
        except OSError as error:
            if folder.is_dir():  # another process was quicker
                return str(folder)
            raise UserError(
                f"the starter set cannot be written to {folder} ({error.strerror}). "
                f"Set XDG_CACHE_HOME to a folder that can be written, or give images of your own: --data PATH"
            ) from error
    return str(folder)
