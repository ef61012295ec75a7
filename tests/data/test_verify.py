"""Files are decoded again when they have changed, and not otherwise."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support import ROOT, write_images

from finetune.config.settings import Images
from finetune.data import facts, readers, verify
from finetune.errors import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verify, "MANY", 1)
    write_images(tmp_path / "data", 4)
    return tmp_path / "data"


def read(folder, skip=False):
    return readers.read(Images(data=str(folder), val_fraction=0.25, skip_bad_images=skip), 3, seed=0)


def decoded(folder, monkeypatch, skip=False):
    """How many files are decoded when the folder is read."""
    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(verify, "_decode", lambda path, decode=verify._decode: seen.append(path) or decode(path))
        read(folder, skip)
    return len(seen)


def test_a_known_file_is_not_decoded_again(files, monkeypatch):
    assert decoded(files, monkeypatch) == 12
    assert decoded(files, monkeypatch) == 0
    os.utime(files / "red" / "00.jpg", (1, 1))
    assert decoded(files, monkeypatch) == 1
    (files / "red" / "00.jpg").rename(files / "red" / "new.jpg")
    assert decoded(files, monkeypatch) == 1


def test_a_bad_file_is_remembered_as_bad(files, monkeypatch):
    (files / "blue" / "01.jpg").write_bytes(b"no image")
    for expected in (12, 0):
        assert decoded(files, monkeypatch, skip=True) == expected
        with pytest.raises(UserError, match=r"1 image does not decode:\n.*01\.jpg: cannot identify"):
            read(files)


def test_without_a_memory_every_file_is_decoded(files, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert decoded(files, monkeypatch) == 12
    assert decoded(files, monkeypatch) == 12
    (tmp_path / "cache").unlink()
    verify.database().parent.mkdir(parents=True)
    verify.database().write_bytes(b"no database at all" * 100)
    assert decoded(files, monkeypatch) == 12


def test_files_are_remembered_as_they_are_decoded(files, monkeypatch):
    """A kill loses what was decoded since."""
    monkeypatch.setattr(verify, "KEPT", 5)
    count = 0

    def decode(path, own=verify._decode):
        nonlocal count
        count += 1
        if count == 12:
            raise KeyboardInterrupt
        return own(path)

    monkeypatch.setattr(verify, "MANY", 1000)  # in this process
    monkeypatch.setattr(verify, "CHUNK", 1)
    with monkeypatch.context() as patched:
        patched.setattr(verify, "_decode", decode)
        with pytest.raises(KeyboardInterrupt):
            read(files)
    assert decoded(files, monkeypatch) == 2


def test_facts_come_in_the_order_of_the_files_and_are_remembered(files, monkeypatch):
    paths = sorted(map(str, files.rglob("*.jpg")), reverse=True)
    first = verify.facts(paths)
    assert len(first) == 12
    for path, found in zip(paths, first, strict=True):
        assert (found["format"], found["digest"].tolist()) == (b"JPEG", facts.of_file(path)["digest"].tolist())
    monkeypatch.setattr(verify, "_decode", None)
    assert verify.facts(paths).tobytes() == first.tobytes()


def test_the_first_five_bad_files_are_named_and_the_rest_counted(files):
    bad = sorted(files.rglob("*.jpg"))[:7]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        read(files)
    first, *named, more, last = str(error.value).splitlines()
    assert first == "7 images do not decode:"
    assert [line.split(": ")[0] for line in named] == [f"  {path}" for path in bad[:5]]
    assert (more, last) == ("  and 2 more", "Fix or delete them, or train without: --skip-bad-images")


# Every file is a bad one, and its reason says which process decoded it.
DECODE = """
import os, sys, time
from finetune.data import verify
from finetune.runtime import entry
verify.MANY = verify.SHOWN = verify.CHUNK = 1
own = verify._decode
def decode(path):
    return f"{own(path)[0][:15]} by {os.getpid()}", b""
verify._decode = decode
def main(paths):
    found = verify.check(paths, True)
    print(os.getpid(), *(f"{path}: {why}" for path, why in found.items()), sep="\\n")
    return 0
entry.run(main)
"""
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode the files")


def command(files, before_decode=""):
    """A program that decodes the files, each after some statement."""
    code = DECODE.replace("def decode(path):", f"def decode(path):\n    {before_decode}")
    return [sys.executable, "-c", code, *sorted(str(path) for path in files.rglob("*.jpg"))]


@needs_fork
def test_many_files_are_decoded_by_other_processes(files):
    (files / "blue" / "01.jpg").write_bytes(b"no image")
    paths = sorted(str(path) for path in files.rglob("*.jpg"))
    ended = subprocess.run(command(files), cwd=ROOT, capture_output=True, text=True, check=True)
    parent, *lines = ended.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == paths
    assert len(paths) == 12
    assert {line.rpartition(" ")[2] for line in lines}.isdisjoint({parent})
    assert [line.partition(": ")[2].partition(" by")[0] for line in lines].count("cannot identify") == 1
    assert ended.stderr == "", "a log needs no progress"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_shows_the_progress(files):
    terminal, inner = pty.openpty()
    subprocess.run(command(files), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=inner, check=True)
    os.close(inner)
    assert b"decoding new images: 7 of 12" in os.read(terminal, 10_000)
    os.close(terminal)


def test_processes_that_start_together_decode_each_file_once(files, tmp_path):
    blocked = command(files, f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(blocked, cwd=ROOT, env=os.environ | {"LOCAL_RANK": rank}, **pipes) for rank in ("0", "0", "1")
    ]
    said, _, _ = select.select([process.stderr for process in started], [], [], 60)
    assert "Waiting for another process" in said[0].readline()
    (tmp_path / "go").touch()
    found = [process.communicate(timeout=60)[0].splitlines()[1:] for process in started]
    assert len(found[0]) == 12
    assert found[0] == found[1] == found[2], "the reasons say which process decoded"


@needs_fork
def test_workers_end_with_the_run(files):
    blocked = command(files, "os.write(1, b'decoding\\n'); os.read(0, 1)")
    run = subprocess.Popen(blocked, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"decoding\n"
    workers = psutil.Process(run.pid).children()
    assert workers
    run.kill()
    run.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (len(workers), [])
    run.stdin.close()
    run.stdout.close()


@needs_fork
@pytest.mark.parametrize("after", [0, 0.2, 1])  # seconds: the pool begins, then it is waited for
def test_ctrl_c_ends_the_run_at_once_and_its_workers_with_it(files, after):
    for k in range(100):
        (files / "red" / f"more{k}.jpg").write_bytes(b"no image")
    slow = command(files, "time.sleep(0.5)")
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the tests may ignore it
    slow[2] = heard + slow[2]
    run = subprocess.Popen(slow, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (workers := psutil.Process(run.pid).children()):
        time.sleep(0.001)
    time.sleep(after)
    run.send_signal(signal.SIGINT)
    try:
        assert run.communicate(timeout=60)[1] == ""
        assert run.returncode == -signal.SIGINT
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    finally:
        run.kill()


def test_an_interrupt_in_a_host_program_does_not_wait_for_the_rest(monkeypatch):
    decoded, begun = [], threading.Event()

    def slow(path):
        begun.set()
        time.sleep(0.05)
        decoded.append(path)
        return "", b""

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(verify, "_decode", slow)
    monkeypatch.setattr(verify, "CHUNK", 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(verify.decode_all([f"{k}.jpg" for k in range(200)]))
    thread.join()
    assert len(decoded) < 100
