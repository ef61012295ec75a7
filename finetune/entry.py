"""A program's beginning and end: its imports, its exit code and its last word."""

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from finetune.errors import INTERRUPTED, MISTAKE, explanation

_begun = False  # whether `run` began this process


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a program on the command line's arguments and end the process with its exit code.

    The interpreter would end by taking apart, object by object, what the system frees at once: for torch that takes
    the best part of a second. So the process ends behind everything else that is to happen at its exit.
    """
    global _begun
    _begun = True
    code = 1  # an exception that nobody explains

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)

    if not atexit._ncallbacks():  # others' handlers, such as a profiler's, would come behind this one, which is the end
        atexit.register(leave)  # the first that is registered comes last
    try:
        code = exit_code(main, sys.argv[1:])
    except BrokenPipeError:  # whoever reads the output, such as `head`, has read enough
        code = 141
    except SystemExit as end:  # from the command line's reader, which has said why
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(code)


@contextmanager
def at_once() -> Iterator[None]:
    """Meanwhile Ctrl-C ends the program at once; there is nothing to lose.

    As an exception it would come in the middle of an import, some of which swallow it, or of a pool's work, which then
    waits for ever for a lock. In a process that `run` did not begin, such as a notebook's, it stays one.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\033[?25h\n")  # the cursor, which a progress bar hides
            sys.stderr.flush()
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    ours = _begun and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


@contextmanager
def imports() -> Iterator[None]:
    """Import without looking for garbage, and let no later search look at what was imported.

    There is next to none of it, and half a million objects to look at: a fifth of the time that the imports take.
    """
    gc.disable()
    try:
        with at_once():
            yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries take what is frozen at the end for lost
        gc.enable()


def import_torch() -> None:
    """Import what every run needs and waits for: torch, and what builds on it."""
    with imports():
        import accelerate  # noqa: F401
        import torchvision  # noqa: F401


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


def _is_lost_connection(error: Exception) -> bool:
    """Whether another process of this run closed the connection, in the words of gloo, NCCL and torch's TCPStore.

    Any other error of theirs, such as a wrong network interface, is this process's own and keeps its traceback.
    """
    signs = ("closed by peer", "closed by remote peer", "reset by peer", "Broken pipe", "Connection was likely closed")
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
