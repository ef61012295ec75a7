"""Every recipe on ants and bees and on the starter set: best validation accuracy (mean, spread over seeds) and time.

    python -m benchmarks.recipes --data hymenoptera_data --weights squeezenet1_0.safetensors --output results

Writes recipes.md and recipes.json. Runs that the output folder already has are not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from finetune import recipes

ROOT = Path(__file__).parent.parent
STARTER, PHOTOS = "starter set, shufflenet_v2_x0_5", "ants and bees, squeezenet1_0"
EXCLUDED = {"vgg_cifar10"}  # made for VGG-16 at 32 × 32


def run(recipe: str, task: list[str], seed: int, output: Path) -> dict:
    """One run's summary."""
    if not (output / "summary.json").exists():
        flags = ["--recipe", recipe, "--seed", str(seed), "--tracker", "none", "--output", str(output)]
        command = [sys.executable, "train.py", *flags, *task]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the ants-and-bees image folder")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of squeezenet1_0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="*", default=[name for name in recipes.NAMES if name not in EXCLUDED])
    given = parser.parse_args()
    photos = ["--data", str(given.data.resolve()), "--model", "squeezenet1_0"]
    rows = []
    for task, flags in ((STARTER, []), (PHOTOS, photos)):
        for name in given.recipes:
            weights = ["--weights", str(given.weights.resolve())] if flags and name != "scratch" else []
            place = given.output.resolve() / f"{'photos' if flags else 'starter'}-{name}"
            done = [run(name, flags + weights, seed, Path(f"{place}-{seed}")) for seed in range(given.seeds)]
            scores = [summary["best_val_accuracy"] for summary in done]
            rows.append({
                "task": task,
                "recipe": name,
                "mean": statistics.mean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "seconds": statistics.median(summary["total_seconds"] for summary in done),
                "seeds": len(scores),
            })  # fmt: skip
            print(rows[-1], flush=True)
    lines = [
        "| task | recipe | best validation accuracy | seconds, median | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['task']} | `{r['recipe']}` | {r['mean']:.3f} ± {r['spread']:.3f} | {r['seconds']:.0f} | {r['seeds']} |"
        for r in rows
    ]
    (given.output / "recipes.md").write_text("\n".join(lines) + "\n")
    (given.output / "recipes.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
