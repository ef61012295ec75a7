"""Seconds to the help, the plan and the first optimizer step, against the imports that every run needs.

python -m benchmarks.startup
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST_STEP = """
import os, sys
from contextlib import contextmanager
import train
original = train.entry.imports
@contextmanager
def imports():
    with original():
        yield
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(lambda *_: os._exit(0))
train.entry.imports = imports
train.main(sys.argv[1:])
"""
READ = "from finetune.config.settings import Images; from finetune.data import readers; readers.read(Images(), 3, 0)"
REGNET = ["--model", "regnet_y_128gf", "--weights", "none"]
SGD = ["--solver", "sgd"]  # a solved head takes no step
CASES = {
    "import torch, torchvision, accelerate": ["-c", "import torch, torchvision, accelerate"],
    "reading the starter set": ["-c", READ],
    "first step, finetune": ["-c", FIRST_STEP, "--recipe", "finetune", *SGD, "--tracker", "none"],
    "first step, finetune, W&B offline": ["-c", FIRST_STEP, "--recipe", "finetune", *SGD, "--tracker", "wandb"],
    "first step, feature_extractor, second run": ["-c", FIRST_STEP, *SGD, "--tracker", "none"],
    "--help": ["train.py", "--help"],
    "--plan, starter set": ["train.py", "--plan"],
    "--plan, regnet_y_128gf": ["train.py", "--plan", *REGNET],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"| command | seconds, median of {repeats} | to the imports |\n| --- | --- | --- |")
    imports = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in CASES.items():
            times = []
            for number in range(repeats + 1):  # the first one fills caches
                output = ["--output", f"{scratch}/{len(os.listdir(scratch))}"] if FIRST_STEP in words else []
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, *words, *output],
                    cwd=ROOT,
                    env=os.environ | {"WANDB_MODE": "offline", "XDG_CACHE_HOME": f"{scratch}/cache"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=True,
                )
                times += [time.perf_counter() - began] if number else []
            seconds = statistics.median(times)
            imports = imports or seconds
            print(f"| {name} | {seconds:.2f} | {seconds / imports:.2f} |", flush=True)


if __name__ == "__main__":
    main()
