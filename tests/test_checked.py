"""Files are decoded again when they have changed, and not otherwise."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, write_images

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


LOOK = """
import os, sys
from finetune import checked, folders
checked.MANY = folders.SHOWN = 1
own = folders._reason
def reason(path):
    return f"{own(path)[:15]} by {os.getpid()}"  # every file is a bad one, and says who looked at it
folders._reason = reason
found = folders.decodable(sys.argv[1:], True)
print(os.getpid(), "torchvision" in sys.modules, *(f"{path}: {why}" for path, why in found.items()), sep="\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads look at all files")
def test_many_files_are_looked_at_by_other_processes(files):
    paths = sorted(str(path) for path in files.rglob("*.jpg"))
    (files / "blue" / "01.jpg").write_bytes(b"no image")
    command = [sys.executable, "-c", LOOK, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    parent, imported, *lines = done.stdout.splitlines()
    assert imported == "True", "meanwhile"
    assert [line.partition(": ")[0] for line in lines] == paths
    assert len(paths) == 12
    assert {line.rpartition(" ")[2] for line in lines}.isdisjoint({parent})
    assert [line.partition(": ")[2].partition(" by")[0] for line in lines].count("cannot identify") == 1
    assert done.stderr == "", "a log needs no bar"
    terminal = os.environ | {"TTY_COMPATIBLE": "1", "XDG_CACHE_HOME": str(files.parent / "another")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=terminal)
    assert "looking at new images" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be locked in this way")
def test_processes_that_start_together_look_at_each_file_once(files):
    paths = sorted(str(path) for path in files.rglob("*.jpg"))
    slow = LOOK.replace("    return f", "    import time; time.sleep(0.2)\n    return f")
    command, ranks = [sys.executable, "-c", slow, *paths], ("0", "0", "1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, env=os.environ | {"LOCAL_RANK": rank}, **pipes) for rank in ranks]
    said, errors = zip(*(process.communicate(timeout=60) for process in started), strict=True)
    found = [words.splitlines()[2:] for words in said]
    assert len(found[0]) == 12
    assert found[0] == found[1] == found[2], "the reasons say which process looked"
    assert any("Waiting for another process" in words for words in errors)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads look at all files")
def test_who_looks_at_files_ends_with_the_run(files):
    code = LOOK.replace("def reason(path):", "def reason(path):\n    print('looking', flush=True); os.read(0, 1)")
    command = [sys.executable, "-c", code, *(str(path) for path in files.rglob("*.jpg"))]
    run = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"looking\n"
    lookers = psutil.Process(run.pid).children()
    assert lookers
    run.kill()
    run.wait()
    gone, alive = psutil.wait_procs(lookers, timeout=10)
    assert (len(gone), alive) == (len(lookers), [])
    run.stdin.close()
    run.stdout.close()


@pytest.mark.parametrize("after", [0, 0.2, 1, 4])  # the pool begins, torch is imported, the rest is waited for
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads look at all files")
def test_ctrl_c_ends_the_run_at_once_and_who_looks_with_it(files, after):
    look, _, _ = LOOK.replace("def reason(path):", "def reason(path):\n    time.sleep(0.5)").partition("found =")
    look += "folders._batched = lambda paths: [[path] for path in paths]\n"
    look += "entry.run(lambda paths: len(folders.decodable(paths, True)))"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # these tests may have been started to ignore it
    code = f"import signal, time\nfrom finetune import entry\n{heard}\n{look}"
    paths, nowhere = [str(path) for path in files.rglob("*.jpg")] * 50, subprocess.DEVNULL
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.Popen(command, cwd=ROOT, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    while not (lookers := psutil.Process(run.pid).children()):
        time.sleep(0.001)
    time.sleep(after)
    run.send_signal(signal.SIGINT)
    try:
        assert run.communicate(timeout=20)[1] == ""
        assert run.returncode == 130
        _, alive = psutil.wait_procs(lookers, timeout=10)
        assert not alive
    finally:
        run.kill()
