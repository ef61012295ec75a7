"""Processes beside the run: they look at images while it imports torch, and draw charts while it draws images.

They are copies of this process (fork), which costs next to nothing before torch is there, and is not safe afterwards:
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def cores() -> int:
    """The processor cores that this process may use, be it alone or with others of its run."""
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


def can_copy() -> bool:
    """Whether this process can be copied safely: on Linux, as long as it has one thread and no torch."""
    return sys.platform.startswith("linux") and threading.active_count() == 1 and "torch" not in sys.modules


class Beside:
    """A module whose functions are called in a process beside this one; it is imported there at once.

    The process lives until this one ends. Signals are this one's affair.
    """

    def __init__(self, module: str) -> None:
        from multiprocessing import Pipe, get_context  # late: it leaves word of what to do at the exit (`entry.run`)

        self.pipe, theirs = Pipe()
        process = get_context("fork").Process(target=_serve, args=(module, theirs, self.pipe), daemon=True)
        process.start()
        theirs.close()
        atexit.register(process.kill)  # it ignores the SIGTERM that Python sends

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function and wait until it has ended; what it raises is raised here."""
        try:
            self.pipe.send((function, arguments))
            error = self.pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process beside this one was ended") from None
        if error is not None:
            raise error


def _serve(module: str, pipe: Connection, parents: Connection) -> None:
    """Answer calls until the other process ends."""
    parents.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
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
            pipe.send(error)
