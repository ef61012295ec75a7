"""Files are decoded again when they have changed, and not otherwise."""

import os

import pytest
from conftest import write_images

from finetune import checked, folders
from finetune.errors import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "MANY", 1)
    write_images(tmp_path / "data", 4)
    return tmp_path / "data"


def looked_at(files, monkeypatch, **options):
    """How many files are decoded when the folder is read."""
    seen = []
    monkeypatch.setattr(folders, "_reasons", lambda paths: seen.extend(paths) or [folders._reason(p) for p in paths])
    folders.read(files, 0.25, 0, options.get("skip", False))
    return len(seen)


def test_a_known_file_is_not_decoded_again(files, monkeypatch):
    assert looked_at(files, monkeypatch) == 12
    assert looked_at(files, monkeypatch) == 0
    os.utime(files / "red" / "00.jpg", (1, 1))
    assert looked_at(files, monkeypatch) == 1
    (files / "red" / "00.jpg").rename(files / "red" / "new.jpg")
    assert looked_at(files, monkeypatch) == 1


def test_a_bad_file_is_remembered_as_bad(files, monkeypatch):
    (files / "blue" / "01.jpg").write_bytes(b"no image")
    for expected in (12, 0):
        assert looked_at(files, monkeypatch, skip=True) == expected
        with pytest.raises(UserError, match=r"1 image does not decode:\n.*01\.jpg: cannot identify"):
            folders.read(files, 0.25, 0, False)


def test_without_a_memory_every_file_is_looked_at(files, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert looked_at(files, monkeypatch) == 12
    assert looked_at(files, monkeypatch) == 12
    (tmp_path / "cache").unlink()
    checked.place().parent.mkdir(parents=True)
    checked.place().write_bytes(b"no database at all" * 100)
    assert looked_at(files, monkeypatch) == 12
