"""Errors that are reported as one message, and exit codes."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Exit codes. 75: stopped on request after a checkpoint. 130: Ctrl-C with nothing to save, or a second one.
MISTAKE, STOPPED, INTERRUPTED = 2, 75, 130

RESUME = "If the run has a checkpoint, continue it with --resume."
MORE_SHM = "Use --workers 0, or enlarge it (docker run --shm-size 1g)."
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not tab and newline
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FAILED_DISK = (errno.EIO, errno.EROFS, errno.ESTALE)  # ESTALE: NFS
NO_MEMORY = (  # in the words of torch's allocator, oneDNN, C++, Python's threads and the system
    *("can't allocate memory", "could not create a primitive", "could not create a memory", "bad_alloc"),
    *("can't start new thread", os.strerror(errno.ENOMEM)),
)
# What the system says of a path that cannot be used, and how to fix it.
PATH_ERRORS = {
    errno.EACCES: "Check its owner and permissions, and those of the folders above it",
    errno.EPERM: "Check its owner and permissions, and those of the folders above it",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.ELOOP: "It is a link that leads back to itself: delete it",
    errno.ENOTDIR: "A part of the path is a file, not a folder: check it",
    errno.EISDIR: "Name a file",
    errno.EEXIST: "Name another, or delete it",
}

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


def shortened(text: str, most: int = 300) -> str:
    """A text that fits into a message: its beginning and its end, where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def set_memory_advice(advice: str) -> None:
    """Set the advice in the message of a later out-of-memory error. It depends on the run's settings."""
    global _advice
    _advice = advice


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a GPU's or the machine's memory does not suffice."""
    on_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, by name: this module does not import torch
    return on_gpu or isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def explanation(error: Exception) -> str | None:
    """The message of an error that the user can act on; None for any other, which keeps its traceback."""
    text = str(error)
    if isinstance(error, UserError) or "UserError: " in text:
        # An error in a DataLoader worker arrives wrapped in that process's traceback.
        return text.rpartition("UserError: ")[2].strip()
    if is_out_of_memory(error):
        return f"out of memory. {_advice}"
    return _of_worker(text) or _of_system(error, text)


def printable(text: str) -> str:
    """Text with control characters spelled out: a stranger's class names must not steer the terminal."""
    return CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def _of_worker(text: str) -> str | None:
    """The message of torch's error for a DataLoader worker that was killed, or could not pass an image on."""
    if "shared memory" in text and os.strerror(errno.ENOSPC) in text:
        return f"/dev/shm, through which image workers pass images, is full. {MORE_SHM} {RESUME}"
    if not re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", text):
        return None
    what = text.strip().splitlines()[0].split(". It is possible")[0].rstrip(". ")
    if "Bus error" in text:
        return (
            f"{what}: /dev/shm, through which image workers pass images, is full, or a file was cut short while it was "
            f"read. {MORE_SHM} {RESUME}"
        )
    return f"{what}. Perhaps the machine's memory ran out: lower --workers. {RESUME}"


def _of_system(error: Exception, text: str) -> str | None:
    """The message of a system's error: full or failed disks, files that must not be opened or are too many."""
    code, path = getattr(error, "errno", None), getattr(error, "filename", None)
    where = f" ({path})" if path else ""

    def is_one_of(codes: Iterable[int]) -> bool:  # libraries in Rust and C++ give the text alone
        return code in codes or any(os.strerror(known) in text for known in codes)

    if is_one_of(FULL_DISK):
        return f"the disk is full{where}. Free some space; if the run has a checkpoint, continue it with --resume."
    if is_one_of(FAILED_DISK):
        return f"a disk or its server failed, or became read-only: {text}. {RESUME}"
    if is_one_of([errno.EMFILE, errno.ENFILE]):
        return f"too many open files{where}. Raise the limit (ulimit -n 4096) or lower --workers. {RESUME}"
    if isinstance(error, OSError) and path is not None and code in PATH_ERRORS:
        shown = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        return f"{shortened(shown)} cannot be used: {error.strerror}. {PATH_ERRORS[code]}."
    return None
