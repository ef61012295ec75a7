"""Kill runs with SIGKILL at random moments, resume them, and compare with an uninterrupted run.

python -m pytest -m torture -s                      # 50 kills, the seed is printed
TORTURE_SEED=7 TORTURE_KILLS=5 python -m pytest -m torture -s
"""

import os
import random
import signal
import time

import pytest
from support import STATEFUL, assert_same, wait_for


@pytest.mark.torture
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_moments_end_as_the_uninterrupted_one(start, processes):
    kills = int(os.environ.get("TORTURE_KILLS", 50)) // 2
    seed = int(os.environ.get("TORTURE_SEED", time.time_ns() % 1_000_000))
    print(f"\n{kills} kills on {processes} processes, seed {seed}")
    draw = random.Random(seed)
    began = time.monotonic()
    whole = start("whole", *STATEFUL, processes=processes)
    assert set(whole.wait()) == {0}, whole.said
    lasted = time.monotonic() - began
    seen = 0
    for trial in range(kills):
        name, moment = f"killed{trial}", draw.uniform(0, lasted)
        run = start(name, *STATEFUL, processes=processes)
        time.sleep(moment)
        # Either a node dies with all its processes, or one process dies and the others must notice. They can once all
        # have connected; before that each waits for all, and only a launcher would notice.
        rank = draw.choice([None, *range(processes)])
        if rank is not None:
            wait_for("config.json", run)
        run.signal(signal.SIGKILL, rank=rank)
        half = [path.name for path in run.output.glob("checkpoints/.*")]
        codes = run.wait(60)
        written = sorted(path.name for path in run.output.glob("checkpoints/*") if path.name[0] != ".")
        where = f"while writing {half[0]}" if half else f"after {written[-1]}" if written else "before a checkpoint"
        print(f"{trial + 1:>3}: {moment:5.2f} s, {where}, exit codes {codes}", flush=True)
        begun = (run.output / "config.json").exists()
        resumed = start(name, *STATEFUL, *(["--resume"] if begun else []), processes=processes)
        assert set(resumed.wait()) == {0}, resumed.said
        assert_same(whole.output, run.output)
        seen += 1
    assert seen == kills
    print(f"{seen} of {kills} killed runs ended with the bytes of the uninterrupted one")
