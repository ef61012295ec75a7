"""The plan's estimate of memory beside what an update takes, on the CPU: the growth of the process's peak.

python -m benchmarks.memory
"""

import subprocess
import sys

CASES = (("resnet50", 16), ("densenet121", 16), ("vit_b_16", 16))

ONE = """
import resource, sys, torch
from finetune import archs, data, freezing, groups, plan, surgery
from finetune.recipe import Net, Rate, Training
name, batch = sys.argv[1], int(sys.argv[2])
torch.zeros(1).square().sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, preprocess, stages = surgery.build(Net(model=name, weights="none"), 10)
rates = [Rate(1.0)] * len(stages)
freezing.set_phase(model, stages, rates, 0)
shape = (batch, 3, preprocess.crop, preprocess.crop)
model.to(memory_format=torch.channels_last)
optimizer = groups.make_optimizer(model, stages, rates, Training(optimizer="adamw"), archs.find(name))
for _ in range(3):
    x = torch.rand(shape).to(memory_format=torch.channels_last)
    torch.nn.functional.cross_entropy(model(x), torch.zeros(batch, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
estimate = plan.memory(model, shape, 10, "adamw", "no").total
print((after - before) / 1024, estimate / 2**20)
"""


def main() -> None:
    print("| model, batch, float32, AdamW | measured MiB | estimated MiB | estimated / measured |")
    print("| --- " * 4 + "|")
    for name, batch in CASES:
        command = [sys.executable, "-c", ONE, name, str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured, estimated = map(float, done.stdout.split())
        print(f"| {name}, {batch} | {measured:.0f} | {estimated:.0f} | {estimated / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
