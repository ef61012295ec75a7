"""The one error that a user can cause, the help in its message, and the place where it is caught."""

import difflib
import sys
from collections.abc import Callable, Iterable

STOPPED = 130  # what a shell reports after Ctrl-C


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


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a program; a `UserError` is printed as one message and gives 2, Ctrl-C gives 130."""
    try:
        return main(arguments)
    except UserError as error:
        # From an image worker the message comes wrapped in that process's traceback.
        print(f"error: {str(error).rpartition('UserError: ')[2].strip()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
