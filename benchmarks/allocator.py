"""What it saves on a CPU to keep large blocks of memory (`hardware.keep_memory`): milliseconds per image, side by side.

python -m benchmarks.allocator
"""

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS, REPEATS = ("squeezenet1_0", "resnet18", "resnet50"), 3
TIMED = """
import sys, time, torch, torchvision
from finetune import hardware
if sys.argv[1] == "kept":
    hardware.keep_memory()
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
    print("| model | forward, plain | forward, kept | step, plain | step, kept |\n" + "| --- " * 5 + "|")
    for model in MODELS:
        times: dict[str, list[list[float]]] = {"plain": [], "kept": []}
        for _ in range(REPEATS):
            for side, found in times.items():
                command = [sys.executable, "-c", TIMED, side, model]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                found.append([float(line) for line in done.stdout.split()])
        cells = [statistics.median(row[k] for row in times[side]) for k in (0, 1) for side in times]
        print(f"| {model} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
