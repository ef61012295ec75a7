"""Kill runs in every phase at random moments, resume them, and compare with an uninterrupted run.

python -m pytest -m torture -n 0 -s tests/torture                       # 48 kills; the seed is printed
TORTURE_SEED=7 TORTURE_KILLS=600 python -m pytest -m torture -n 0 -s tests/torture
"""

import os
import random
import time
from collections import Counter

import pytest
from phases import KILL, PHASES, Watch
from support import STATEFUL, assert_same, wait_for


@pytest.mark.torture
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_in_every_phase_end_as_the_uninterrupted_one(start, tmp_path, processes):
    kills = int(os.environ.get("TORTURE_KILLS", 48)) // 2
    seed = int(os.environ.get("TORTURE_SEED", time.time_ns() % 1_000_000))
    print(f"\n{kills} kills on {processes} processes, seed {seed}")
    draw = random.Random(seed)

    def watched(name, *flags):
        watch = Watch(tmp_path / name, processes)
        return start(name, *STATEFUL, *cache(name), *flags, processes=processes, prepare=watch.begin), watch

    def cache(name):  # of its own, so that features are computed
        return "--cache-dir", str(tmp_path / f"{name}-cache")

    whole, watch = watched("whole")
    assert set(whole.wait()) == {0}, whole.said
    length = {phase: watch.looks(phase) for phase in PHASES}
    assert all(length.values()), f"a phase was not seen: {length}"
    seen, files = Counter(), Counter()
    for trial in range(kills):
        # Phases take turns. In each, the moment is drawn over its whole length in the uninterrupted run.
        phase, name = PHASES[(seed + trial) % len(PHASES)], f"killed{trial}"
        moment = draw.uniform(0, length[phase])
        # Either a node dies with all its processes, or one process dies and the others must notice. They can once all
        # have connected; before that each waits for all, and only a launcher would notice.
        rank = draw.choice([None, *range(processes)])
        run, watch = watched(name)
        while watch.looks(phase) < moment and run.ranks[0].is_alive():
            time.sleep(0.001)
        if rank is not None:
            wait_for("config.json", run)
        run.signal(KILL, rank)
        half = [path.name for path in run.output.glob("checkpoints/.*")]
        codes = run.wait(60)
        fell, line = watch.killed_at(rank or 0)
        if codes == [0] * processes:
            fell = "after its end"
        written = sorted(path.name for path in run.output.glob("checkpoints/*") if path.name[0] != ".")
        held = f"while writing {half[0]}" if half else f"after {written[-1]}" if written else "before a checkpoint"
        print(f"{trial + 1:>3}: {fell}, {line}, {held}, exit codes {codes}", flush=True)
        begun = (run.output / "config.json").exists()
        resumed = start(name, *STATEFUL, *cache(name), *(["--resume"] if begun else []), processes=processes)
        assert set(resumed.wait()) == {0}, resumed.said
        assert_same(whole.output, run.output)
        seen[fell] += 1
        files[line.partition(":")[0]] += 1
    assert sum(seen.values()) == kills
    print(f"{kills} killed runs ended with the bytes of the uninterrupted one. Kills by phase and by file:")
    for name, count in [*((phase, seen[phase]) for phase in [*PHASES, "after its end"]), *sorted(files.items())]:
        print(f"{count:>5}  {name}")
    if kills >= 4 * len(PHASES):
        assert all(seen[phase] for phase in PHASES), f"a phase was not hit: {seen}"
