"""Values of unknown origin against their declared types and bounds: settings, options, entries of JSON."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from finetune.config.settings import Bounds
from finetune.errors import UserError, shortened

Number = Annotated[float, Bounds()]  # any that is finite
TYPES = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Path: (Path, "a path"),
    list: (list, "a list"),
    dict: (dict, "an object"),
    Any: (object, "anything"),
    type(None): (type(None), "None"),
}


def check(options: Any) -> None:
    """Raise `UserError` for the first option or setting of a dataclass that has a wrong value."""
    for name, value, wanted in wrong_values(options):
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        raise UserError(f"--{name.replace('_', '-')} {shortened(shown)}: must be {wanted}.")


def problem(entries: Any, table: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> str:
    """What is wrong with an object of a JSON file, the types of whose entries `table` declares; "" where nothing is.

    Entries of `optional` may be missing. Those that neither table has are not looked at.
    """
    if not isinstance(entries, dict):
        return "it is no object"
    if missing := [name for name in table if name not in entries]:
        return f"{missing[0]} is missing"
    for name, hint in {**table, **(optional or {})}.items():
        if name in entries and not fits(entries[name], hint):
            return f"{name} {shortened(repr(entries[name]), 60)} must be {expected(hint)}"
    return ""


def wrong_values(section: Any) -> list[tuple[str, Any, str]]:
    """The settings of a section (`Net`, `Images`, …) with a wrong value: name, value, and what it must be."""
    found = []
    for name, hint in _hints(type(section)).items():
        value = getattr(section, name)
        if not fits(value, hint):
            found.append((name, value, expected(hint)))
    return found


def convert(section: type, name: str, value: Any) -> Any:
    """A setting as JSON or a notebook gives it: a list becomes a tuple, a path what the setting takes."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str | Path):
        return Path(value) if _takes(_hints(section)[name], Path) else str(value)
    return value


def _takes(hint: Any, kind: type) -> bool:
    """Whether a type hint is this type or has it among its alternatives, annotated or not."""
    return hint is kind or any(_takes(one, kind) for one in get_args(hint))


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, and within its bounds."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = len(value) if isinstance(value, tuple) else value
        return fits(value, arguments[0]) and all(
            _within(number, bounds) for bounds in arguments[1:] if isinstance(bounds, Bounds)
        )
    if origin is Literal:
        return value in arguments and not isinstance(value, bool)  # which counts as 0 or 1
    if origin in (tuple, list):
        return isinstance(value, origin) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if arguments:  # a union
        return any(fits(value, one) for one in arguments)
    return isinstance(value, TYPES[hint][0]) and (hint is bool or not isinstance(value, bool))


def _within(value: float, bounds: Bounds) -> bool:
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
    return (
        finite
        and (bounds.at_least is None or value >= bounds.at_least)
        and (bounds.above is None or value > bounds.above)
        and (bounds.at_most is None or value <= bounds.at_most)
        and (bounds.below is None or value < bounds.below)
    )


def expected(hint: Any) -> str:
    """A field's type and bounds in words: `a number at least 0 and below 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [
            f"{name.replace('_', ' ')} {limit}"
            for bounds in arguments[1:]
            if isinstance(bounds, Bounds)
            for name, limit in bounds._asdict().items()
            if limit is not None
        ]
        inner, within = expected(arguments[0]), " and ".join(limits)
        if get_origin(arguments[0]) is tuple and within:
            return inner.replace("a list", f"a list of {within} entries", 1)
        return f"{inner} {within}".strip()
    if origin is Literal:
        return f"{'one of ' if arguments[1:] else ''}{', '.join(map(str, arguments))}"
    if origin in (tuple, list):
        return f"a list, each {expected(arguments[0])}"
    if origin is dict:
        return f"an object, each entry {expected(arguments[1])}"
    if arguments:
        return " or ".join(expected(one) for one in arguments)
    return TYPES[hint][1]
