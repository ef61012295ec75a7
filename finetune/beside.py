"""A process beside the run, which draws charts while it draws images.

It is a copy of this process (fork), which costs next to nothing before torch is there, and is not safe afterwards:
torch has threads.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
from contextlib import suppress
from pickle import PickleError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def can_copy() -> bool:
    """Whether this process can be copied safely: on Linux, as long as it has one thread and no torch."""
    return sys.platform.startswith("linux") and threading.active_count() == 1 and "torch" not in sys.modules


class Beside:
    """A module whose functions are called in a process beside this one; it is imported there at once.

    The process lives as long as this one. Signals are this one's affair.
    """

    def __init__(self, module: str) -> None:
        from multiprocessing import Pipe  # late: it leaves word of what to do at the exit (`entry.run`)

        self.pipe, theirs = Pipe()
        if os.fork() == 0:
            try:
                self.pipe.close()
                _serve(module, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function and wait until it has ended; what it raises is raised here."""
        try:
            self.pipe.send((function, arguments))
            error = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process beside this one was ended") from None
        if error is not None:
            raise error


def _serve(module: str, pipe: Connection) -> None:
    """Answer calls until the other process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # who reads what the run prints need not wait for this process
        os.dup2(nowhere, stream)
    atexit._clear()  # what the run wants done at its exit
    with suppress(Exception):  # it is told when a function is called
        importlib.import_module(module)
    with suppress(EOFError, OSError):
        while True:
            function, arguments = pipe.recv()
            error = None
            try:
                getattr(importlib.import_module(module), function)(*arguments)
            except Exception as raised:
                error = raised
            try:
                pipe.send(error)
            except (TypeError, AttributeError, PickleError):  # it cannot be sent as it is
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    atexit._run_exitfuncs()  # matplotlib may have made a folder for the time being
