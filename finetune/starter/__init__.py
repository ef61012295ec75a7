"""The built-in image sets: drawn by code, once, into the user's cache folder, and read like any other folder."""

from __future__ import annotations

from finetune.errors import UserError
from finetune.runtime import files

PARTS = {"starter": "target", "starter-source": "source"}


def path(data: str) -> str:
    """The folder of a built-in set, which is drawn on first use; any other `--data` is returned unchanged."""
    if data not in PARTS:
        return data
    from finetune.starter import images

    folder = files.cache_folder() / f"starter-{images.VERSION}" / PARTS[data]
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
