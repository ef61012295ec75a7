"""The beginning and end of a program: exit codes, and errors as one message."""

from __future__ import annotations

import codecs
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from typing import NoReturn

from finetune.errors import INTERRUPTED, MISTAKE, UserError, explanation, printable

PLAIN = {"×": "x", "…": "...", "–": "-", "→": "->", "±": "+-", "─": "-", "│": "|", **dict.fromkeys("╭╮╰╯", "+")}
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # of launchers
SECONDS = 5  # that processes wait for each other to report the same error

_is_program = False  # whether `run` started this process: a notebook keeps its own signals


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a program on the command line's arguments and end the process with its exit code."""
    global _is_program
    _is_program = True
    print_anything()
    try:
        code = exit_code(main, sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the rest
        code = 141  # 128 + SIGPIPE, as a shell reports it
    sys.exit(code)


def print_anything() -> None:
    """Let stdout and stderr take every text: what their encoding lacks is spelled in ASCII, or escaped as in JSON.

    A terminal or a pipe may be of another encoding than UTF-8, and the name of a file may be no Unicode at all.
    """

    def spell(error: UnicodeError) -> tuple[str, int]:
        text = error.object[error.start : error.end]
        return "".join(PLAIN.get(letter) or json.dumps(letter)[1:-1] for letter in text), error.end

    codecs.register_error("finetune.spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a host program may have put another stream there
            stream.reconfigure(errors="finetune.spell")


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a program. An error that has an explanation is printed as one message and gives 2; Ctrl-C gives 130.

    A connection lost because another process of the run ended gives 1 and one line: the message to read is the other
    process's. Every other exception keeps its traceback.
    """
    try:
        check_variables()
        code = main(arguments)
        for name in ("SIGTERM", "SIGUSR1", "SIGHUP"):  # a signal that arrives now must not change the exit code
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
        if _is_first_to_report(message):
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)
        return MISTAKE


def check_variables() -> None:
    """Raise `UserError` for a launcher's variable that is no whole number."""
    for name in NUMBERS:
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.isdigit()):
            problem = f"the variable {name} is '{value}', and launchers set it to a whole number"
            for other in NUMBERS:  # what reports the error reads them too
                os.environ.pop(other, None)
            raise UserError(f"{problem}. Unset it: unset {name}")


@contextmanager
def ctrl_c_kills() -> Iterator[None]:
    """While a program starts, Ctrl-C ends it at once, by the system's default: there is nothing to lose.

    A KeyboardInterrupt can come in the middle of an import, some of which swallow it, or inside a process pool, which
    then hangs. In a process that `run` did not start, such as a notebook's, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = _is_program and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


@contextmanager
def imports() -> Iterator[None]:
    """Disable garbage collection while a program imports its packages, and let Ctrl-C end it at once.

    Imports make half a million objects and next to no garbage. To search these takes a third of the imports' time, and
    as much again at the program's end; `gc.freeze` keeps the collector from them. In a process that `run` did not
    start, this does nothing.
    """
    if not _is_program:
        yield
        return
    gc.disable()
    try:
        with ctrl_c_kills():
            yield
    finally:
        # One of several processes ends as the interpreter always does: with frozen objects, gloo once aborted it.
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            gc.freeze()
        gc.enable()


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


def _is_first_to_report(message: str) -> bool:
    """Whether no other process of the run has printed this message: an error that all of them find is printed once."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"  # each machine may have an error of its own
    key = f"finetune/error/{blake2b(message.encode(), digest_size=8).hexdigest()}"
    try:
        host, port, processes = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
        store = distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SECONDS))
        first = store.add(key, 1) == 1
        holds_store = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        deadline = time.monotonic() + SECONDS
        while holds_store and store.add(key, 0) < processes and time.monotonic() < deadline:
            time.sleep(0.05)  # the store ends with this process
        return first
    except (KeyError, RuntimeError):  # the process that holds the store has ended: report rather than keep silent
        return True
