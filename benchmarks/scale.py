"""How start, memory and time grow with the number of images: a folder of small files, and arrays on disk.

    python -m benchmarks.scale --output results

Two sizes of each, ten times apart. Memory is the peak of the process's own pages: without those of mapped files, which
the system takes back when it needs them. No activations are cached.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parent.parent
CLASSES = 10
TRAIN = ["train.py", "--recipe", "feature_extractor", "--model", "shufflenet_v2_x0_5", "--weights", "none"]
TRAIN += ["--image-size", "32", "--epochs", "1", "--batch-size", "256", "--tracker", "none", "--cache-gb", "0"]


def files(top: Path, count: int) -> None:
    """A folder of small JPEG files: train/ and a hundredth as many in val/."""
    drawn = np.random.default_rng(0)
    kinds = []
    for _ in range(50):
        held = io.BytesIO()
        Image.fromarray(drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(held, "jpeg")
        kinds.append(held.getvalue())
    for split, images in (("train", count), ("val", max(count // 100, CLASSES))):
        for label in range(CLASSES):
            (top / split / f"class{label}").mkdir(parents=True)
        for k in range(images):
            (top / split / f"class{k % CLASSES}" / f"{k:07}.jpg").write_bytes(kinds[k % len(kinds)])


def arrays(top: Path, count: int) -> None:
    """x_train.npy and the others: images of 224 pixels, 147 KB each."""
    top.mkdir(parents=True)
    for split, images in (("train", count), ("val", max(count // 100, CLASSES))):
        shape = (images, 224, 224, 3)
        x = np.lib.format.open_memmap(top / f"x_{split}.npy", "w+", np.uint8, shape)
        for start in range(0, images, 256):
            x[start : start + 256] = np.random.default_rng(start).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        x.flush()
        np.save(top / f"y_{split}.npy", np.arange(images) % CLASSES)


def timed(flags: list[str], cache: Path) -> tuple[float, int]:
    """Seconds of a run of train.py, and the most bytes that it held for itself."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, *TRAIN, *flags],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
    )
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            held = watched.memory_info()
            peak = max(peak, held.rss - getattr(held, "shared", 0))  # `shared` are pages of files
        except psutil.Error:  # it has just ended
            break
        time.sleep(0.2)
    if process.wait():
        raise SystemExit(f"{' '.join(flags)} failed")
    return time.perf_counter() - began, peak


def measure(kind: str, make, count: int, scratch: Path) -> dict:
    """One row: the plan twice, then a run of one epoch."""
    data, cache = scratch / "images", scratch / "cache"
    make(data, count)
    size = sum(entry.stat().st_size for entry in data.rglob("*") if entry.is_file())
    first, _ = timed(["--data", str(data), "--plan"], cache)
    again, _ = timed(["--data", str(data), "--plan"], cache)
    _, peak = timed(["--data", str(data), "--output", str(scratch / "run")], cache)
    epoch = json.loads((scratch / "run" / "metrics.jsonl").read_text())["seconds"]
    shutil.rmtree(scratch)
    row = {"images": f"{count:,} {kind}", "gigabytes": size / 1e9, "plan": first, "plan again": again}
    return row | {"epoch": epoch, "peak megabytes": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the table, and for temporary images")
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--arrays", type=int, default=13_600, help="images of 147 KB: 2 GB")
    given = parser.parse_args()
    scratch, rows = given.output.resolve() / "scratch", []
    for kind, make, most in (("files", files, given.files), ("rows of an array", arrays, given.arrays)):
        for count in (most // 10, most):
            rows.append(measure(kind, make, count, scratch))
            print(rows[-1], flush=True)
    heads = ("images", "GB", "plan, s", "plan again, s", "epoch, s", "peak, MB")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        name, *figures = row.values()
        lines.append(f"| {name} | " + " | ".join(f"{figure:.3g}" for figure in figures) + " |")
    (given.output / "scale.md").write_text("\n".join(lines) + "\n")
    (given.output / "scale.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
