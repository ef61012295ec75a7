"""The plan's estimate of memory against a step on the CPU: the growth of the process's peak; and a step's time.

python -m benchmarks.memory
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = (("resnet50", 16), ("densenet121", 16), ("vit_b_16", 16))

ONE = """
import resource, sys, time, torch
from finetune import recipes
from finetune.models import network
from finetune.reporting import memory
from finetune.training.param_groups import make_optimizer
name, batch, checkpointing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "yes"
torch.zeros(1).square().sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
settings = {"model": name, "weights": "none", "optimizer": "adamw", "gradient_checkpointing": checkpointing}
recipe = recipes.from_settings("finetune", settings)
net = network.build(recipe, 10)
model = net.model.to(memory_format=torch.channels_last)
shape = (batch, 3, net.preprocess.crop, net.preprocess.crop)
optimizer = make_optimizer(net, recipe.training)
seconds = []
for _ in range(3):
    begun = time.perf_counter()
    x = torch.rand(shape).to(memory_format=torch.channels_last)
    torch.nn.functional.cross_entropy(model(x), torch.zeros(batch, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - begun)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
estimate = memory.estimate(model, shape, 10, "adamw", "no").total
print((after - before) / 1024, estimate / 2**20, min(seconds))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[name for name, _ in CASES])
    given = parser.parse_args()
    print("| model, batch, float32 | checkpointing | measured MiB | estimated MiB | estimated / measured | s a step |")
    print("| --- " * 6 + "|")
    for name, batch in CASES:
        for checkpointing in ("no", "yes") if name in given.models else ():
            command = [sys.executable, "-c", ONE, name, str(batch), checkpointing]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            measured, estimated, seconds = map(float, done.stdout.split())
            values = f"{measured:.0f} | {estimated:.0f} | {estimated / measured:.2f} | {seconds:.1f}"
            print(f"| {name}, {batch} | {checkpointing} | {values} |", flush=True)


if __name__ == "__main__":
    main()
