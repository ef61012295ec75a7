"""Files of tensors, changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def tensors(name: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = {key: value.clone() for key, value in load_file(folder / name).items()}
        save_file(change(state), folder / name)

    return write


def first(state: dict, value) -> dict:
    key = next(key for key in state if state[key].ndim > 1)
    return state | {key: value(state[key])}
