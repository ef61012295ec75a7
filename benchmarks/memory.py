"""The plan's estimate of memory against a step on the CPU: the growth of the process's peak.

python -m benchmarks.memory
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = (("resnet50", 16), ("densenet121", 16), ("vit_b_16", 16))

ONE = """
import resource, sys, torch
from finetune import recipes
from finetune.models import network
from finetune.reporting import memory
from finetune.training.param_groups import make_optimizer
name, batch = sys.argv[1], int(sys.argv[2])
torch.zeros(1).square().sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
recipe = recipes.from_settings("finetune", {"model": name, "weights": "none", "optimizer": "adamw"})
net = network.build(recipe, 10)
model = net.model.to(memory_format=torch.channels_last)
shape = (batch, 3, net.preprocess.crop, net.preprocess.crop)
optimizer = make_optimizer(net, recipe.training)
for _ in range(3):
    x = torch.rand(shape).to(memory_format=torch.channels_last)
    torch.nn.functional.cross_entropy(model(x), torch.zeros(batch, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
estimate = memory.estimate(model, shape, 10, "adamw", "no").total
print((after - before) / 1024, estimate / 2**20)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[name for name, _ in CASES])
    given = parser.parse_args()
    print("| model, batch, float32, AdamW | measured MiB | estimated MiB | estimated / measured |")
    print("| --- " * 4 + "|")
    for name, batch in CASES:
        if name not in given.models:
            continue
        command = [sys.executable, "-c", ONE, name, str(batch)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        measured, estimated = map(float, done.stdout.split())
        print(f"| {name}, {batch} | {measured:.0f} | {estimated:.0f} | {estimated / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
