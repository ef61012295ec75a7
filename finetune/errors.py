"""What goes wrong, as one message: the user's mistakes, a full disk or memory."""

import difflib
import errno
from collections.abc import Iterable

# Exit codes. 75: stopped on request after a checkpoint. 130: Ctrl-C with nothing to save, or a second one.
MISTAKE, STOPPED, INTERRUPTED = 2, 75, 130

_advice = "Lower --batch-size, or raise --accumulate."


class UserError(Exception):
    """A mistake that the user can mend. Its text names the thing and says how; `train.py` prints it, exit code 2."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not among `known`, with the nearest ones, or all of them where there are few."""
    known = sorted(known)
    near = difflib.get_close_matches(given.lower(), known, n=4, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} '{given}'. Did you mean {' or '.join(near)}?")
    listed = ", ".join(known)
    return UserError(f"unknown {kind} '{given}'. Known: {listed}.")


def when_memory_runs_out(advice: str) -> None:
    """What to say besides, from now on: it depends on the run, and the error can come from any line of it."""
    global _advice
    _advice = advice


def explanation(error: Exception) -> str | None:
    """The message for an error that has one, None for a crash."""
    text = str(error)
    if isinstance(error, UserError) or "UserError: " in text:
        # From an image worker the message comes wrapped in that process's traceback.
        return text.rpartition("UserError: ")[2].strip()
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory. {_advice}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        return f"the disk is full{where}. Make room; if the run has a checkpoint, --resume goes on from it."
    return None
