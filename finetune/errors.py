"""What goes wrong, as one message: the user's mistakes, a full disk or memory, another process that ended."""

import difflib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

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


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a program; what has an explanation is printed as one message and gives 2, or 130 for a second Ctrl-C.

    Where another process of the run ended first and this one lost its connection, that gives 1 and a line that says
    so: the other's message, which came first, is the one to read.
    """
    try:
        code = main(arguments)
        for name in ("SIGTERM", "SIGUSR1"):  # what has ended well is not to be ended by a signal that comes too late
            number = getattr(signal, name, None)
            if number and callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if _is_lost_connection(error):
            print(f"Rank {os.environ['RANK']}: another process of this run ended, so this one ends.", file=sys.stderr)
            return 1
        message = explanation(error)
        if message is None:
            raise
        if _says_it_first(message):
            print(f"error: {message}", file=sys.stderr, flush=True)
        return MISTAKE


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


def _is_lost_connection(error: Exception) -> bool:
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "TCPStore")
    return (
        int(os.environ.get("WORLD_SIZE", 1)) > 1
        and isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in signs)
    )


def _says_it_first(message: str) -> bool:
    """Whether no other process has given this message: a mistake that all of them find is told once."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"  # each machine may have a mistake of its own
    try:
        store, key = distributed.distributed_c10d._get_default_store(), f"finetune/error/{message}"
        order = store.add(key, 1)
        for _ in range(20 if distributed.get_rank() == 0 else 0):  # the others ask the store, which ends with this one
            if store.add(key, 0) == distributed.get_world_size():
                break
            time.sleep(0.1)
        return order == 1
    except Exception:  # the process that holds the store is gone
        return True
