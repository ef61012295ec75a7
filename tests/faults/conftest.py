"""Fixtures of the tests of faults."""

from pathlib import Path

import pytest


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with an empty one of a stranger, one for results, and something to spoil beside them."""
    (tmp_path / "precious").write_text("precious")
    for name in ("out", "stranger"):
        (tmp_path / name).mkdir()
    yield tmp_path
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "marker").exists(), "code was run"
