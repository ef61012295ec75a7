"""Errors that are reported as one message, and exit codes."""

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

# Exit codes. 75: stopped on request after a checkpoint. 130: Ctrl-C with nothing to save, or a second one.
MISTAKE, STOPPED, INTERRUPTED = 2, 75, 130

_advice = "Lower --batch-size, or raise --accumulate."


class UserError(Exception):
    """A mistake that the user can fix. Its text says what is wrong and how to fix it; the exit code is 2."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in `known`, with the nearest names, or with all if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(given.lower(), known, n=4, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} '{given}'. Did you mean {' or '.join(near)}?")
    return UserError(f"unknown {kind} '{given}'. Known: {', '.join(known)}.")


def no_run(folder: Path, why: str) -> UserError:
    """The error for a folder that is no run, which names one where it is a cross-validation's."""
    fold = folder / "fold-1"
    example = fold if fold.is_dir() else "runs/finetune-20250101-120000"
    return UserError(f"{folder} is no run: it {why}. Give a run's folder, such as {example}.")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, separated by commas, with an ellipsis where there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def set_memory_advice(advice: str) -> None:
    """Set the advice in the message of a later out-of-memory error. It depends on the run's settings."""
    global _advice
    _advice = advice


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a GPU's or the machine's memory does not suffice."""
    on_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, by name: this module does not import torch
    return on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def explanation(error: Exception) -> str | None:
    """The message of an error that the user can act on; None for any other, which keeps its traceback."""
    text = str(error)
    if isinstance(error, UserError) or "UserError: " in text:
        # An error in a DataLoader worker arrives wrapped in that process's traceback.
        return text.rpartition("UserError: ")[2].strip()
    if is_out_of_memory(error):
        return f"out of memory. {_advice}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        return f"the disk is full{where}. Free some space; if the run has a checkpoint, continue it with --resume."
    return None
