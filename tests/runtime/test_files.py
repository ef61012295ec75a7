"""Files and folders are whole or not there; checksums tell damage."""

import fcntl
import os
import pwd
from pathlib import Path

import pytest
import torch

from finetune.runtime import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_when_it_is_whole(tmp_path, shared):
    path = tmp_path / "a.json"
    for text in ("first", "second"):
        with files.atomic(path, shared) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent, "on another disk it could not be renamed"
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_with_all_that_it_held(tmp_path):
    path = tmp_path / "model"
    for name in ("first", "second"):
        with files.atomic(path) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
        assert names(path) == [name]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_block_that_raises_changes_nothing(tmp_path, folder):
    path = tmp_path / "a"
    path.mkdir() if folder else path.write_text("kept")

    def write():
        with files.atomic(path) as temporary:
            temporary.mkdir() if folder else temporary.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write()
    assert names(tmp_path) == ["a"]
    assert path.is_dir() if folder else path.read_text() == "kept"


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").touch()
    rename = Path.rename

    def fail(self, target):
        if self.name == ".a.new":
            raise OSError("the disk is full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="the disk is full"), files.atomic(tmp_path / "a") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["kept"]


@pytest.mark.parametrize("code", sorted(files.NO_LOCKS))
def test_a_lock_that_cannot_be_had_is_done_without(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    seen = []
    for folder in (tmp_path, tmp_path / "not there"):
        with files.locked(folder / "a.lock"):
            seen.append(folder)
    assert len(seen) == 2


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    left = tmp_path / ".a.new"
    left.mkdir()
    (left / "half").touch()
    files.write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_tensors_get_the_permissions_of_other_files(tmp_path):
    files.save_tensors({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "other").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("x.safetensors", "other")}
    assert len(modes) == 1


def test_each_kind_of_damage_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert files.damage(tmp_path).startswith("SHA256SUMS cannot be read")
    files.write_sums(tmp_path, {"a": files.digest(tmp_path / "a")})
    assert files.damage(tmp_path) is None
    sums = files.read_sums(tmp_path)
    assert sums == {name: files.digest(tmp_path / name) for name in ("a", "b")}

    (tmp_path / "a").write_text("A")
    assert files.damage(tmp_path) == "a does not match its checksum"
    (tmp_path / "a").unlink()
    assert files.damage(tmp_path) == "a is missing"
    (tmp_path / "a").write_text("a")
    (tmp_path / "c").touch()
    assert files.damage(tmp_path) == "c is not in SHA256SUMS"
    (tmp_path / "c").unlink()
    (tmp_path / files.SUMS).write_text((tmp_path / files.SUMS).read_text()[:-1])
    assert files.damage(tmp_path).startswith("SHA256SUMS cannot be read")


def test_the_cache_is_where_the_environment_names_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "finetune"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(files.cache_folder()) == "/home/somebody/.cache/finetune"


def test_a_user_without_a_home_has_a_cache_that_cannot_be_written(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert str(files.cache_folder()) == "/.cache/finetune"
