"""A disk that fills at the n-th write: each run works or ends with one message, and goes on as if nothing had happened.

FAULT_WRITES=all python -m pytest -m torture -n 0 -s tests/faults     # every write in turn; the default is a few
"""

import errno
import os
import random
import shutil
import time

import pytest
from fault_disk import FaultDisk
from faulty_runs import assert_close
from support import assert_same

pytestmark = pytest.mark.torture

# A new phase in each epoch, a cache, a moving average, a checkpoint after each step, frozen tensors that are linked.
FLAGS = (
    *("--recipe", "gradual_unfreeze", "--unfreeze-every", "1", "--ema", "0.8", "--batch-size", "12"),
    *("--checkpoint-every", "1", "--keep-checkpoints", "1"),
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory, image_folder):
    made = FaultDisk(tmp_path_factory.mktemp("disk"), image_folder)
    yield made
    made.close()


def drawn(writes: int) -> list[int]:
    """The writes that fail, one in each trial: all of them, or as many as FAULT_WRITES, spread over the run."""
    asked = os.environ.get("FAULT_WRITES", "10")
    count = writes if asked == "all" else min(int(asked), writes)
    seed = int(os.environ.get("TORTURE_SEED", time.time_ns() % 1_000_000))
    print(f"\n{count} of {writes} writes fail in turn, seed {seed}")
    draw = random.Random(seed)
    return sorted({1 + int((k + draw.random()) * writes / count) for k in range(count)})


@pytest.mark.parametrize(("what", "code"), [("all", errno.ENOSPC), ("all", errno.EROFS), ("one", errno.EIO)])
def test_a_run_whose_writes_fail_goes_on_as_the_uninterrupted_one(disk, tmp_path, what, code):
    """From the n-th write on all fail: the disk is full, or became read-only. Or one fails, as on a broken disk."""
    whole, cache = tmp_path / "whole", ("--cache-dir", str(tmp_path / "cache"))
    ended, said = disk.run(whole, whole, *FLAGS, *cache)
    assert ended == 0, said
    writes, seen = disk.writes, 0
    assert writes > 100
    for nth in (moments := drawn(writes)):
        output = tmp_path / "run"
        ended, said = disk.run(output, output, *FLAGS, *cache, nth=nth, last=nth if what == "one" else None, code=code)
        failed = disk.failed
        print(f"{nth:>4} {failed.replace(str(output), '')}: {ended}", flush=True)
        assert failed, f"{nth}: no write failed"
        assert "Traceback" not in said, f"{failed}\n{said}"
        assert ended in (0, 2), f"{failed}\n{said}"
        if ended:
            assert sum(line.startswith("error: ") for line in said.splitlines()) == 1, said
            begun = (output / "config.json").exists()
            ended, said = disk.run(output, output, *FLAGS, *cache, *(["--resume"] if begun else []))
            assert ended == 0, f"{failed}\n{said}"
        assert_same(whole, output)
        assert [path.name for path in output.rglob(".*")] == [".lock"]
        shutil.rmtree(output)
        seen += 1
    assert seen == len(moments) > 0


def test_a_cache_whose_writes_fail_costs_no_run(disk, tmp_path):
    """Failures cost the cache: activations are computed again, and the losses are the same up to rounding."""
    flags = ("--recipe", "feature_extractor", "--epochs", "2")
    whole, cache = tmp_path / "whole", tmp_path / "whole-cache"
    ended, said = disk.run(cache, whole, *flags, "--cache-dir", str(cache))
    assert ended == 0, said
    writes, seen = disk.writes, 0
    assert writes > 10
    for nth in (moments := drawn(writes)):
        output, cache = tmp_path / f"run{nth}", tmp_path / f"cache{nth}"
        ended, said = disk.run(cache, output, *flags, "--cache-dir", str(cache), nth=nth, code=errno.ENOSPC)
        assert disk.failed
        assert ended == 0, f"{disk.failed}\n{said}"
        assert "Traceback" not in said
        assert_close(whole, output)
        assert not list(cache.glob(".*")), "unfinished files"
        seen += 1
    assert seen == len(moments) > 0
