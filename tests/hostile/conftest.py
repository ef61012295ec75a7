"""The things that cases of hostile input are made of."""

import shutil
from pathlib import Path

import pytest
from hostile.harness import Place, end_of, train
from support import no_pictures, write_images
from written_runs import write_image_set, write_run


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and a run that has ended. No test changes them."""
    top = tmp_path_factory.mktemp("things")
    write_images(top / "photos" / "train", 4)
    write_images(top / "photos" / "val", 2, seed=1)
    write_run(top / "run", write_image_set(top / "set", ["ant", "bee", "cat"]))
    return top


@pytest.fixture(scope="session")
def stopped(things: Path) -> Path:
    """The folder of a run with two checkpoints. No test changes it."""
    (things / "work").mkdir()
    output = things / "stopped"
    words = train("--recipe", "finetune", "--data", things / "photos", "--output", output, "--epochs", "2")
    with pytest.MonkeyPatch.context() as patched:
        no_pictures(patched)
        end = end_of(words, things / "work", seconds=60)
    assert end.code == 0, end.err
    assert len(list((output / "checkpoints").iterdir())) == 2
    return output


@pytest.fixture
def place(things: Path, tmp_path: Path, request: pytest.FixtureRequest):
    """An empty working folder."""
    (tmp_path / "work").mkdir()
    yield Place(tmp_path / "work", things / "photos", things / "run", lambda: request.getfixturevalue("stopped"))
    for path in tmp_path.rglob("*"):  # pytest deletes the folder
        if not path.is_symlink() and path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(tmp_path, ignore_errors=True)
