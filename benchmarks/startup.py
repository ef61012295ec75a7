"""How long help and plan take, beside the imports that a run cannot do without.

python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = {
    "import torch, torchvision, accelerate": ["-c", "import torch, torchvision, accelerate"],
    "--help": ["train.py", "--help"],
    "--plan, starter set": ["train.py", "--plan"],
    "--plan, regnet_y_128gf": ["train.py", "--plan", "--model", "regnet_y_128gf", "--weights", "none"],
}


def main() -> None:
    print("| command | seconds, median of 5 |\n| --- | --- |")
    for name, words in CASES.items():
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - began)
        print(f"| {name} | {statistics.median(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
