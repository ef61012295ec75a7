"""Run train.py for each line of stdin, forked from this process, which has imported torch; see `fault_disk.py`."""

import json
import sys
from pathlib import Path

from support import Started

from finetune.reporting import results

results.draw = lambda *_: None  # pictures take longer than these runs
for line in sys.stdin:
    asked = json.loads(line)
    Path(asked["output"]).with_suffix(".log").unlink(missing_ok=True)
    run = Started(Path(asked["output"]), Path(asked["data"]), asked["flags"], 1)
    print(json.dumps([run.wait()[0], run.said]), flush=True)
