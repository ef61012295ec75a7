"""Training time of whole processes against a plain loop (`benchmarks.reference_loop`), side by side in one run.

    python -m benchmarks --data hymenoptera_data --weights squeezenet1_0.safetensors --output results

Writes speed.md and speed.json: for each case both medians and their ratio, and a description of the machine. Networks
without given weights get random ones on both sides. The two sides take turns, so that other load meets both.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.commands.bench import processor

ROOT = Path(__file__).parent.parent
PIPELINE = """
import sys, time, torch
from pathlib import Path
from PIL import Image
from torchvision import datasets, transforms
torch.set_num_threads(1)
normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
steps = [transforms.RandomResizedCrop(224, (0.35, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
if sys.argv[1] == "ours":
    from accelerate import Accelerator
    from finetune import recipes
    from finetune.data import readers
    from finetune.data.loader import make_loaders
    from finetune.data.transforms import to_input
    from finetune.models.architectures import preprocess
    settings = {"model": "resnet18", "data": sys.argv[2], "batch_size": 32, "crop_scale": 0.35, "workers": 0}
    recipe, own = recipes.from_settings("finetune", settings), preprocess("resnet18")
    splits = readers.read(recipe.images, 3, 0).splits
    loader = make_loaders(splits, own, recipe, Accelerator(cpu=True))["train"]
    ready = lambda batch: to_input(batch.images, own, torch.device("cpu"), True)
else:
    samples = datasets.ImageFolder(Path(sys.argv[2]) / "train", transforms.Compose([*steps, normalise]))
    loader = torch.utils.data.DataLoader(samples, 32, shuffle=True)
    ready = lambda batch: batch[0]
for epoch in range(2):
    began = time.perf_counter()
    for batch in loader:
        ready(batch)
    seconds = time.perf_counter() - began
print(seconds)
"""


@dataclass(frozen=True)
class Case:
    """One row of the table, with the flags of the reference loop and of train.py."""

    name: str
    model: str
    recipe: str
    batch: int
    least: float
    """The target for the ratio."""
    again: float = 0
    """The target where a first run has cached its activations; 0: not timed."""
    amp: bool = False
    """The reference with mixed precision and eight workers, for a GPU."""


CASES = (
    Case("feature_extractor, squeezenet1_0", "squeezenet1_0", "feature_extractor", 4, 10, again=15),
    Case("feature_extractor, resnet18", "resnet18", "feature_extractor", 4, 14),
    Case("last_layers, resnet18", "resnet18", "last_layers", 4, 5),
    Case("finetune, resnet18, batch 32", "resnet18", "finetune", 32, 2.5),
    Case("finetune, resnet50, batch 32", "resnet50", "finetune", 32, 4),
)
GPU_CASES = (Case("finetune, resnet50, batch 32, AMP", "resnet50", "finetune", 32, 1.5, amp=True),)


def seconds(command: list[str], cache: Path | None = None) -> tuple[float, str]:
    """Seconds that a Python process takes, and its output; `cache` becomes its XDG_CACHE_HOME."""
    variables = {"XDG_CACHE_HOME": str(cache)} if cache else {}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def compare(case: Case, given: argparse.Namespace, scratch: Path) -> list[dict]:
    """Time both sides of a case in turn: a row for our first run and, where the case has a target, the second."""
    weights = given.weights.resolve() if case.model == "squeezenet1_0" and given.weights else None
    common = ["--data", str(given.data.resolve()), "--model", case.model, "--epochs", str(given.epochs)]
    common += ["--recipe", case.recipe]
    theirs = ["-m", "benchmarks.reference_loop", *common, "--batch-size", str(case.batch)]
    theirs += ["--amp", "--workers", "8"] if case.amp else []
    theirs += ["--weights", str(weights)] if weights else []
    ours = ["train.py", *common, "--tracker", "none", "--weights", str(weights or "none")]
    ours += ["--batch-size", str(case.batch)] if case.recipe == "finetune" else []
    aims = {case.name: case.least} | ({f"{case.name}, second run": case.again} if case.again else {})
    found = {name: {"reference": [], "ours": []} for name in aims}  # (seconds, accuracy) of each run
    for seed in range(given.repeats):
        word = ["--seed", str(seed)]
        took, said = seconds([*theirs, *word])
        reference = took, float(said.rsplit("best ", 1)[1].split()[0])
        for name in aims:
            took, _ = seconds([*ours, *word, "--output", str(scratch / "run")], scratch / "cache")
            summary = json.loads((scratch / "run" / "summary.json").read_text())
            found[name]["reference"].append(reference)
            found[name]["ours"].append((took, summary["best_val_accuracy"]))
            shutil.rmtree(scratch / "run")
        shutil.rmtree(scratch / "cache", ignore_errors=True)
    rows = []
    for name, sides in found.items():
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(sides["reference"], sides["ours"], strict=True)]
        row = {"case": name, "aim": aims[name], "ratio": statistics.median(ratios), "ratios": ratios}
        for side, runs in sides.items():
            took, scores = zip(*runs, strict=True)
            row |= {f"{side}_seconds": statistics.median(took), f"{side}_accuracy": statistics.mean(scores)}
        rows.append(row)
    return rows


def pipeline(given: argparse.Namespace) -> dict:
    """Decode and augment on one core: seconds for the training images, with the files in the page cache."""
    took: dict[str, list[float]] = {"reference": [], "ours": []}
    for _ in range(given.repeats):
        for side, times in took.items():
            times.append(float(seconds(["-c", PIPELINE, side, str(given.data.resolve())])[1]))
    ratios = [theirs / ours for theirs, ours in zip(took["reference"], took["ours"], strict=True)]
    row = {"case": "decode and augment, one core", "aim": 1.4, "ratio": statistics.median(ratios), "ratios": ratios}
    return row | {f"{side}_seconds": statistics.median(times) for side, times in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the ants-and-bees image folder")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of squeezenet1_0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cases", default="", help="only those with this in their name")
    given = parser.parse_args()
    scratch = given.output.resolve() / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.is_available()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "torch": torch.__version__,
        "epochs": given.epochs,
        "repeats": given.repeats,
    }
    rows = []
    for case in (*CASES, *(GPU_CASES if gpu else ())):
        if given.cases in case.name:
            rows += compare(case, given, scratch)
            print(*rows[-2 if case.again else -1 :], sep="\n", flush=True)
    if given.cases in "decode and augment, one core":
        rows.append(pipeline(given))
        print(rows[-1], flush=True)
    shutil.rmtree(scratch)
    lines = [f"{', '.join(f'{name}: {value}' for name, value in machine.items())}", ""]
    lines += ["| case | aim | reference / ours | reference, s | ours, s | accuracies |", "| --- " * 6 + "|"]
    for row in rows:
        scores = f"{row['reference_accuracy']:.3f}, {row['ours_accuracy']:.3f}" if "ours_accuracy" in row else ""
        times = f"{row['reference_seconds']:.1f} | {row['ours_seconds']:.1f}"
        lines.append(f"| {row['case']} | {row['aim']} | {row['ratio']:.2f} | {times} | {scores} |")
    (given.output / "speed.md").write_text("\n".join(lines) + "\n")
    (given.output / "speed.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
