"""What keeping freed memory (`devices.keep_memory`) saves on a CPU, in milliseconds per image.

python -m benchmarks.allocator
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS = ("squeezenet1_0", "resnet18", "resnet50")
TIMED = """
import sys, time, torch, torchvision
from finetune.runtime import devices
if sys.argv[1] == "kept":
    devices.keep_memory()
model = torchvision.models.get_model(sys.argv[2]).to(memory_format=torch.channels_last)
images = torch.rand(32, 3, 224, 224).to(memory_format=torch.channels_last)
def forward():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(images)
def step():
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images).float().logsumexp(1).mean()
    loss.backward()
for work in (forward, step):
    work()
    began = time.perf_counter()
    for _ in range(5):
        work()
    print((time.perf_counter() - began) / 5 / 32 * 1000)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print("| model | forward, plain | forward, kept | step, plain | step, kept |\n" + "| --- " * 5 + "|")
    for model in given.models:
        times: dict[str, list[list[float]]] = {"plain": [], "kept": []}
        for _ in range(given.repeats):
            for side, found in times.items():
                command = [sys.executable, "-c", TIMED, side, model]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                found.append([float(line) for line in done.stdout.split()])
        cells = [statistics.median(row[k] for row in times[side]) for k in (0, 1) for side in times]
        print(f"| {model} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
