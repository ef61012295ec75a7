"""Fixtures of the tests of the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_client import serve
from support import no_pictures, reset_accelerate


@pytest.fixture(scope="package")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model tells most of the images apart: a solved head on pretrained layers."""
    import train as script

    folder = tmp_path_factory.mktemp("served") / "colours"
    flags = f"--recipe feature_extractor --data {image_folder} --output {folder} --tracker none --precision no"
    flags += " --model shufflenet_v2_x0_5 --weights starter --image-size 32 --l2 1e-2"
    flags += f" --cache-dir {folder.parent}/cache"
    reset_accelerate()
    with pytest.MonkeyPatch.context() as patched:
        no_pictures(patched)
        assert script.main(flags.split()) == 0
    return folder


@pytest.fixture(scope="module")
def running(run: Path):
    """A server of that run."""
    with serve(run) as found:
        yield found


@pytest.fixture
def files(image_folder: Path) -> list[bytes]:
    """The validation images."""
    return [path.read_bytes() for path in sorted((image_folder / "val").rglob("*.jpg"))]
