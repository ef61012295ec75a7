"""Weights that no network takes, and files without weights."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.harness import Case, Place, check, params, train
from hostile.json_files import DEEP
from safetensors.torch import load_file, save_file

NAME = "shufflenet_v2_x0_5"


def state_of(place: Place) -> dict[str, torch.Tensor]:
    return load_file(place.run / "model" / "model.safetensors")


def weights_case(name: str, write: Callable[[Path, dict], object], *says: str, suffix: str = ".pth") -> Case:
    def make(place: Place) -> list[str]:
        write(place.folder / f"w{suffix}", state_of(place))
        return train("--data", place.photos, "--model", NAME, "--weights", f"w{suffix}")

    return Case(f"weights {name}", make, says or (f"w{suffix}",))


def every(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, dict], None]:
    return lambda path, state: torch.save({key: change(value) for key, value in state.items()}, path)


def quantised(value: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8)


def header(content: object, size: int | None = None) -> Callable[[Path, dict], None]:
    """A safetensors file of that header."""

    def write(path: Path, state: dict) -> None:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)

    return write


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


CASES = [
    weights_case("of int32", every(lambda value: value.to(torch.int32))),
    weights_case("of int8", every(lambda value: value.to(torch.int8))),
    weights_case("of booleans", every(lambda value: value > 0)),
    weights_case("of complex numbers", every(lambda value: value.to(torch.complex64))),
    weights_case("that are sparse", every(lambda value: value.to_sparse() if value.ndim else value)),
    weights_case("that are quantised", every(quantised)),
    weights_case("on the meta device", every(lambda value: value.to("meta"))),
    weights_case("of float8", every(lambda value: value.to(torch.float8_e5m2))),
    weights_case("that are infinite", every(lambda value: value.float() * float("inf"))),
    weights_case("that are NaN", every(lambda value: torch.full_like(value.float(), float("nan")))),
    weights_case("expanded from one number", every(lambda value: torch.zeros(()).expand(value.shape))),
    weights_case(
        "expanded to 4 TB",
        lambda path, state: torch.save(state | {"conv1.0.weight": torch.zeros(()).expand(10**6, 10**6)}, path),
    ),
    weights_case("of numbers", lambda path, state: torch.save(dict.fromkeys(state, 1.0), path)),
    weights_case("with keys that are numbers", lambda path, state: torch.save(dict(enumerate(state.values())), path)),
    weights_case("that are a list", lambda path, state: torch.save(list(state.values()), path)),
    weights_case("that are a tensor", lambda path, state: torch.save(torch.zeros(3), path)),
    weights_case("that hold themselves", lambda path, state: (state.update(model=state), torch.save(state, path))),
    weights_case("that are empty", lambda path, state: torch.save({}, path)),
    weights_case("of no bytes", lambda path, state: path.touch()),
    weights_case("of text", lambda path, state: path.write_text("text")),
    weights_case(
        "cut in half", lambda path, state: (torch.save(state, path), os.truncate(path, path.stat().st_size // 2))
    ),
    weights_case("with code", lambda path, state: torch.save({"a": Code()}, path)),
    weights_case("that are a module", lambda path, state: torch.save(torch.nn.Linear(2, 2), path)),
    weights_case("that are a pipe", lambda path, state: os.mkfifo(path)),
    weights_case("that are a device", lambda path, state: path.symlink_to("/dev/zero")),
    weights_case("that may not be read", lambda path, state: (torch.save(state, path), path.chmod(0))),
    weights_case(
        "of another model",
        lambda path, state: torch.save({f"x.{key}": value for key, value in state.items()}, path),
        "does not fit",
    ),
    weights_case("of another shape", every(lambda value: torch.zeros(3)), "does not fit"),
    weights_case("with a name of surrogates", lambda path, state: torch.save(state | {"\udcff": torch.zeros(3)}, path)),
    weights_case("safetensors of no bytes", lambda path, state: path.touch(), suffix=".safetensors"),
    weights_case("safetensors of text", lambda path, state: path.write_text("text" * 99), suffix=".safetensors"),
    weights_case("safetensors that are a pipe", lambda path, state: os.mkfifo(path), suffix=".safetensors"),
    weights_case(
        "safetensors that are a device", lambda path, state: path.symlink_to("/dev/zero"), suffix=".safetensors"
    ),
    weights_case("safetensors with an endless header", header(b"", 2**62), suffix=".safetensors"),
    weights_case("safetensors with a nested header", header(DEEP.encode()), suffix=".safetensors"),
    weights_case(
        "safetensors beyond the file",
        header({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}),
        suffix=".safetensors",
    ),
    weights_case(
        "safetensors of overflowing shapes",
        header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
        suffix=".safetensors",
    ),
    weights_case(
        "safetensors of an unknown type",
        header({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}),
        suffix=".safetensors",
    ),
    weights_case("safetensors without tensors", header({}), suffix=".safetensors"),
    weights_case(
        "safetensors of int32",
        lambda path, state: save_file({key: value.to(torch.int32) for key, value in state.items()}, path),
        suffix=".safetensors",
    ),
    weights_case(
        "safetensors that may not be read",
        lambda path, state: (save_file(state, path), path.chmod(0)),
        suffix=".safetensors",
    ),
]


@pytest.mark.parametrize("case", params(CASES, 20))
def test_weights_that_are_none_are_refused(case, place):
    check(case, place)
