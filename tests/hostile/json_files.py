"""JSON files that are none, or whose entries are of other types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hostile.harness import Case, Place

DEEP = "[" * 100_000
NO_JSON = {
    "empty": b"",
    "cut": b'{"format": 2, "model": "res',
    "binary": bytes(range(256)) * 20,
    "in UTF-16": '{"format": 2}'.encode("utf-16"),
    "nested": DEEP.encode(),
    "nested objects": ('{"a":' * 100_000).encode(),
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "text": b'"text"',
    "a number without end": b'{"format": ' + b"9" * 10_000 + b"}",
    "infinite": b'{"format": 1e999}',
    "large": b'{"a": "' + b"x" * (70 * 2**20) + b'"}',
}


def json_cases(
    label: str, where: Callable[[Path], Path], command: Callable[[Place], list[object]], name: str, source="run"
) -> list[Case]:
    def make(content: bytes, place: Place) -> list[object]:
        shutil.copytree(getattr(place, source), place.folder / "run")
        where(place.folder / "run").write_bytes(content)
        return command(place)

    return [
        Case(f"{label}: {kind}", lambda place, content=content: make(content, place), (name,))
        for kind, content in NO_JSON.items()
    ]


def changed(
    label: str, file: str, command: Callable[[Place], list[object]], changes: dict[str, dict[str, object]], source="run"
) -> list[Case]:
    """Entries of a JSON file changed; of metrics.jsonl those of its last line."""

    def make(place: Place, change: dict[str, object]) -> list[object]:
        shutil.copytree(getattr(place, source), place.folder / "run")
        path = place.folder / "run" / file
        *before, last = (
            [json.loads(line) for line in path.read_text().splitlines()]
            if file.endswith("l")
            else [json.loads(path.read_text())]
        )
        last = {key: value for key, value in (last | change).items() if value is not ...}
        path.write_text("\n".join(map(json.dumps, [*before, last])) + "\n")
        return command(place)

    return [
        Case(f"{label}: {kind}", lambda place, change=change: make(place, change), (Path(file).name,))
        for kind, change in changes.items()
    ]
