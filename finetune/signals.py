"""What a run is asked between two updates: to stop, by a signal; to write a checkpoint, by the clock."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Requests:
    """SIGTERM, SIGUSR1 or Ctrl-C as a question that the loop answers between two updates; a second Ctrl-C ends at once.

    To be made when the loop begins: until then a signal ends the process, which has nothing to lose. One process may be
    asked, or know that a checkpoint is due (every so many updates, or seconds by the main one's clock), and the others
    not: `share` begins to tell the others, `agreed` says what all of them have heard by then. Between the two the
    optimizer works, so that the exchange costs next to no time; it goes over the CPU, so that it does not wait for a
    GPU.
    """

    def __init__(self, accelerator: Accelerator, every_updates: int, every_seconds: float) -> None:
        self.main_process, self.saved = accelerator.is_main_process, time.monotonic()
        self.every_updates, self.every_seconds = every_updates, every_seconds
        self.asked_by = ""
        """The name of the signal that this process was sent."""
        self.flags = torch.zeros(2, dtype=torch.int32)  # stop, save
        self.exchange, self.under_way = None, None
        if accelerator.num_processes > 1:
            group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
            self.exchange = partial(dist.all_reduce, self.flags, group=group, async_op=True)
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked_by = signal.Signals(number).name
        if number == signal.SIGINT:
            print("\nStopping after this update. Ctrl-C again stops at once.", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def share(self) -> None:
        """Begin to tell the other processes what this one was asked."""
        self.flags[0] = bool(self.asked_by)
        self.flags[1] = self.main_process and time.monotonic() - self.saved > self.every_seconds
        self.under_way = self.exchange and self.exchange()

    def agreed(self, done: int) -> tuple[bool, bool]:
        """Whether to stop, and whether to save after `done` updates, as of the last `share`: the same for all."""
        stop, save = self._heard()
        if save:
            self.saved = time.monotonic()
        return stop, save or done % self.every_updates == 0

    def stop(self) -> bool:
        """Whether to stop, where there is no update. A checkpoint that is due stays due: the next `agreed` says so."""
        self.share()
        return self._heard()[0]

    def _heard(self) -> tuple[bool, bool]:
        if self.under_way:
            self.under_way.wait()
        return tuple(self.flags.bool().tolist())
