"""Stop signals and due checkpoints, agreed on by all processes between two steps."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal asked the run to stop. Raised on all processes at the same step, whichever of them received it."""


class Interrupts:
    """SIGTERM, SIGUSR1, SIGHUP or Ctrl-C stops the run between two steps; a second Ctrl-C ends the process at once.

    Construct it when the loop begins: until then a signal ends the process, which has nothing to lose.

    A signal may reach one process alone, and only the main process's clock says when a checkpoint is due. `exchange`
    starts an all-reduce of both flags, and the next check waits for it. The step is computed in between and hides the
    cost. The exchange goes over gloo on the CPU, so that it does not wait for a GPU.
    """

    pending = ""
    """A signal that this process received and no run has stopped for; the next run in the process does."""

    def __init__(self, accelerator: Accelerator, every_steps: int, every_seconds: float) -> None:
        """A checkpoint is due every so many steps, and every so many seconds."""
        self.main_process, self.saved = accelerator.is_main_process, time.monotonic()
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self.signal, Interrupts.pending = Interrupts.pending, ""
        """The name of the signal that this process received."""
        self.flags = torch.zeros(2, dtype=torch.int32)  # stop, save
        self.begin_exchange, self.under_way = None, None
        if accelerator.num_processes > 1:
            group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
            self.begin_exchange = partial(dist.all_reduce, self.flags, group=group, async_op=True)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or signal.Signals(number).name != "SIGHUP":  # nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = Interrupts.pending = signal.Signals(number).name
        if number == signal.SIGINT:
            print("\nStopping after this step. Ctrl-C again stops at once.", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.signal == "SIGHUP":
            _leave_terminal()

    def exchange(self) -> None:
        """Start to exchange with the other processes whether to stop and whether to save. Collective."""
        self.flags[0] = bool(self.signal)
        self.flags[1] = self.main_process and time.monotonic() - self.saved > self.every_seconds
        self.under_way = self.begin_exchange and self.begin_exchange()

    def checkpoint_due(self, step: int) -> bool:
        """Whether to save after `step` steps, as of the last `exchange`; the same on all processes.

        Raises `Stopped` where any process had received a signal by then.
        """
        save = self._save_agreed()
        if save:
            self.saved = time.monotonic()
        return save or step % self.every_steps == 0

    def raise_if_stopped(self) -> None:
        """Raise `Stopped` where any process has received a signal. Collective.

        For loops other than training's, such as evaluation. A checkpoint that is due stays due until the next step.
        """
        self.exchange()
        self._save_agreed()

    def _save_agreed(self) -> bool:
        """Wait for the exchange: whether the main process's clock says to save. Raises `Stopped`."""
        if self.under_way:
            self.under_way.wait()
        stop, save = self.flags.bool().tolist()
        if stop:
            Interrupts.pending = ""
            raise Stopped
        return save


def _leave_terminal() -> None:
    """Discard what is printed from now on, but to files: to print to a closed terminal, or its `tee`, is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)
