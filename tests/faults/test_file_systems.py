"""File systems that are small, read-only, not there or without links and locks; data that change in mid-run."""

import ctypes
import errno
import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_runs import LONG, assert_close, error_of
from support import assert_same, wait_for, write_images

from finetune.data import tensor_cache
from finetune.runtime import files

pytestmark = pytest.mark.slow

CLONE_NEWNS = 0x20000  # unshare(2)
SMALL = ("--recipe", "finetune", "--epochs", "2")
CACHED = ("--recipe", "feature_extractor", "--epochs", "2")


@pytest.fixture(scope="module")
def mount():
    """Mount a tmpfs, for the calling process and its children alone: `mount("/dev/shm", "size=1m")`."""

    def of_this_process(folder: Path | str, options: str) -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("only root on Linux can mount file systems")
    return of_this_process


@pytest.mark.parametrize("size", ["64k", "1m"])
def test_a_small_dev_shm_is_enough_or_named(start, mount, size):
    run = start(
        *("run", *SMALL, "--workers", "2", "--image-size", "128", "--cache-gb", "0"),
        prepare=lambda rank: mount("/dev/shm", f"size={size}"),
    )
    if run.wait() != [0]:
        assert run.wait() == [2], run.said
        assert "/dev/shm" in error_of(run)
        assert "--workers 0" in error_of(run)


@pytest.mark.parametrize("inodes", [3, 12])
def test_no_inodes_end_a_run_with_one_message(start, mount, tmp_path, inodes):
    (tmp_path / "disk").mkdir()
    run = start("disk/run", *SMALL, prepare=lambda rank: mount(tmp_path / "disk", f"nr_inodes={inodes}"))
    assert run.wait() == [2], run.said
    assert "No space left" in error_of(run) or "the disk is full" in error_of(run)


def test_caches_that_cannot_be_written_cost_no_run(start, mount, tmp_path):
    whole = start("whole", *CACHED)
    assert whole.wait() == [0], whole.said
    (tmp_path / "cache").mkdir()

    def prepare(rank: int) -> None:
        os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        mount(tmp_path / "cache", "size=1m")
        (tmp_path / "cache" / "features").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "cache")], check=True)

    many = write_many(tmp_path)  # so many that it is remembered which decode
    run = start("run", *CACHED, "--cache-dir", str(tmp_path / "cache" / "features"), prepare=prepare)
    assert run.wait() == [0], run.said
    assert "nothing is cached" in run.said
    assert_close(whole.output, run.output)
    run = start("big", *CACHED, data=many, prepare=prepare)
    assert run.wait() == [0], run.said


def write_many(folder: Path) -> Path:
    write_images(folder / "many" / "train", 40)
    write_images(folder / "many" / "val", 3)
    return folder / "many"


@pytest.mark.parametrize("home", [None, "/proc"])
def test_a_user_without_a_home_trains(start, tmp_path, home):
    """As in a container that is started with some user's number: no home is known, or nothing can be written there."""

    def nobody(number):
        raise KeyError(number)

    def prepare(rank: int) -> None:
        for name in ("HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        if home:
            os.environ["HOME"] = home
        pwd.getpwuid = nobody
        cache = files.cache_folder() if home else Path("/proc") / files.cache_folder().relative_to("/")
        files.cache_folder = lambda: cache  # root could write to /
        tensor_cache.folder = lambda _: cache / "features"  # as without --cache-dir

    run = start("run", *CACHED, data=write_many(tmp_path), prepare=prepare)
    assert run.wait() == [0], run.said
    assert "Traceback" not in run.said


def without_links_and_locks(rank: int) -> None:
    """As some of NFS, FUSE and object stores."""

    def link(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    os.link, fcntl.flock = link, flock


def late(rank: int) -> None:
    """On rank 1, as on another machine: what has just been written is not there yet, for half a second."""
    without_links_and_locks(rank)
    if rank == 0:
        return
    real = os.stat

    def stat(path, *rest, **options):
        found = real(path, *rest, **options)
        if "/run/" in str(path) and time.time() - found.st_ctime < 0.5:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    os.stat = stat


@pytest.mark.parametrize(("processes", "prepare"), [(1, without_links_and_locks), (2, late)])
def test_a_file_system_without_links_and_locks_is_enough(start, processes, prepare):
    flags = ("--recipe", "gradual_unfreeze", "--unfreeze-every", "1", "--checkpoint-every", "1")
    whole = start("whole", *flags, processes=processes)
    assert set(whole.wait()) == {0}, whole.said
    run = start("run", *flags, processes=processes, prepare=prepare)
    assert set(run.wait()) == {0}, run.said
    assert_same(whole.output, run.output, {"frozen.safetensors"})
    again = start("run", *flags, "--resume", "--epochs", "2", processes=processes, prepare=prepare)
    assert set(again.wait()) == {0}, again.said


@pytest.mark.parametrize("what", ["deleted", "cut short", "read-only", "replaced"])
def test_images_that_change_in_mid_run_are_named_or_used(start, tmp_path, what):
    data = tmp_path / "data"
    write_images(data / "train", 7)
    write_images(data / "val", 3)
    run = start("run", *LONG, "--no-cache-images", data=data)
    wait_for("metrics.jsonl", run)
    victim = data / "train" / "red" / "03.jpg"
    if what == "deleted":
        shutil.rmtree(data / "train" / "red")
    elif what == "cut short":
        victim.write_bytes(victim.read_bytes()[:300])
    elif what == "read-only":
        for path in data.rglob("*"):
            path.chmod(0o500 if path.is_dir() else 0o400)
    else:
        shutil.copy(data / "val" / "blue" / "00.jpg", victim)
    if what in ("deleted", "cut short"):
        assert run.wait(60) == [2], run.said
        assert "does not decode" in error_of(run)
        assert "/red/" in error_of(run)
    else:
        written = len((run.output / "metrics.jsonl").read_text().splitlines())
        while len((run.output / "metrics.jsonl").read_text().splitlines()) < written + 2:
            assert run.ranks[0].is_alive(), run.said
            time.sleep(0.1)
        run.signal(15)
        assert run.wait(30) == [75], run.said


def test_a_cache_that_is_cleared_while_in_use_changes_nothing(start, tmp_path):
    cache = tmp_path / "cache"
    flags = (*CACHED, "--views", "8", "--epochs", "8")
    whole = start("whole", *flags)
    run = start("run", *flags, "--cache-dir", str(cache))
    while run.ranks[0].is_alive():
        if cache.is_dir():
            tensor_cache.clear(cache)
        time.sleep(0.02)
    assert run.wait() == [0], run.said
    assert whole.wait() == [0], whole.said
    assert_close(whole.output, run.output)
