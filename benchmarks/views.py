"""How many views of each training image a frozen start needs: best validation accuracy against --views.

    python -m benchmarks.views --data hymenoptera_data --weights squeezenet1_0.safetensors --output results

As many views as epochs is fresh augmentation in each epoch. Writes views.md and views.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the ants-and-bees image folder")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of squeezenet1_0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the tables")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="*", default=["feature_extractor", "last_layers"])
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS, help="numbers of views")
    given = parser.parse_args()
    photos = ["--data", str(given.data.resolve()), "--model", "squeezenet1_0"]
    photos += ["--weights", str(given.weights.resolve())]
    rows = []
    for task, flags in (("starter set", []), ("ants and bees", photos)):
        for recipe in given.recipes:
            scores: dict[int, list[float]] = {count: [] for count in given.counts}
            for seed in range(given.seeds):
                for count in given.counts:
                    output = given.output.resolve() / f"{task.split()[0]}-{recipe}-{count}-{seed}"
                    if not (output / "summary.json").exists():
                        command = [sys.executable, "train.py", "--recipe", recipe, *flags, "--solver", "sgd"]
                        command += ["--tracker", "none"]
                        command += ["--views", str(count), "--seed", str(seed), "--output", str(output)]
                        command += ["--cache-dir", str(given.output.resolve() / "features")]
                        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                    scores[count].append(json.loads((output / "summary.json").read_text())["best_val_accuracy"])
            for count, found in scores.items():
                spread = statistics.stdev(found) if len(found) > 1 else 0.0
                rows.append({"task": task, "recipe": recipe, "views": count, "mean": statistics.mean(found),
                             "spread": spread, "seeds": len(found)})  # fmt: skip
                print(rows[-1], flush=True)
    lines = ["| task | recipe | views | best validation accuracy | seeds |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r['task']} | `{r['recipe']}` | {r['views']} | {r['mean']:.3f} ± {r['spread']:.3f} | {r['seeds']} |"
        for r in rows
    ]
    (given.output / "views.md").write_text("\n".join(lines) + "\n")
    (given.output / "views.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
