"""Read W&B's own offline file back: LevelDB's log format with `wandb_internal_pb2.Record`s in it."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768


@dataclass
class Read:
    """What an offline run holds."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    run: Any = None
    artifacts: list[Any] = field(default_factory=list)
    system: int = 0
    """Records of system metrics."""
    ended: bool = False


def read_ended(output: Path) -> Read:
    """The one offline run beneath a run's folder, once it has ended."""
    (path,) = (output / "wandb").glob("offline-run-*/*.wandb")
    return ended(path)


def ended(path: Path, seconds: float = 20) -> Read:
    """A file once W&B's own process has written its end, which may be a moment after `finish` has returned."""
    deadline = time.monotonic() + seconds
    while not (found := read_file(path)).ended and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def read(output: Path) -> Read:
    """The one offline run beneath a run's folder."""
    (path,) = (output / "wandb").glob("offline-run-*/*.wandb")
    return read_file(path)


def read_file(path: Path) -> Read:
    """One .wandb file."""
    found = Read()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "history":
            found.rows.append(_values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(record.request.log_artifact.artifact)
        found.system += kind == "stats"
        found.ended |= kind == "exit"
    return found


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *above, name = item.nested_key or [item.key]
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
    return found


def _records(data: bytes) -> list[bytes]:
    """The log's records, each in one part or in a first, middle and last ones; what is cut off at the end is left."""
    assert b":W&B".startswith(data[:4])
    at, found, parts = 7, [], b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        piece, at = data[at + 7 : at + 7 + size], at + 7 + size
        if kind == 0 or len(piece) < size:
            break
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            found.append(parts)
    return found
