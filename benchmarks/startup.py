"""How long help, the plan and the way to the first update take, beside the imports that a run cannot do without.

python -m benchmarks.startup
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST_UPDATE = """
import os, sys
from contextlib import contextmanager
import train
usual = train.entry.imports
@contextmanager
def imports():
    with usual():
        yield
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(lambda *_: os._exit(0))
train.entry.imports = imports
train.main(sys.argv[1:])
"""
READ = "from finetune import imagesets, recipe; imagesets.read(recipe.Images(), 3, 0)"
REGNET = ["--model", "regnet_y_128gf", "--weights", "none"]
CASES = {
    "import torch, torchvision, accelerate": ["-c", "import torch, torchvision, accelerate"],
    "reading the starter set": ["-c", READ],
    "first update, finetune": ["-c", FIRST_UPDATE, "--recipe", "finetune", "--tracker", "none"],
    "first update, finetune, W&B offline": ["-c", FIRST_UPDATE, "--recipe", "finetune", "--tracker", "wandb"],
    "first update, feature_extractor, second run": ["-c", FIRST_UPDATE, "--tracker", "none"],
    "--help": ["train.py", "--help"],
    "--plan, starter set": ["train.py", "--plan"],
    "--plan, regnet_y_128gf": ["train.py", "--plan", *REGNET],
}


def main() -> None:
    print("| command | seconds, median of 5 | to the imports |\n| --- | --- | --- |")
    imports = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in CASES.items():
            times = []
            for number in range(6):  # the first one fills caches
                output = ["--output", f"{scratch}/{len(os.listdir(scratch))}"] if FIRST_UPDATE in words else []
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
