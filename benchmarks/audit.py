"""Time and memory of `python -m finetune check` on many images, at first and when they are remembered.

    python -m benchmarks.audit --images caltech101 --count 100000

The images are random parts of those in the folder, of a quarter of the area and more, as JPEGs in 100 classes.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from PIL import Image

from benchmarks.__main__ import ROOT
from finetune.commands.bench import processor
from finetune.data.image_files import is_image
from finetune.runtime import entry

CLASSES = 100


def write(sources: list[Path], numbers: range, folder: Path) -> None:
    """Write the images of these numbers."""
    for number in numbers:
        draw = random.Random(number)
        with Image.open(draw.choice(sources)) as image:
            width, height = (round(side * draw.uniform(0.5, 1)) for side in image.size)
            left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
            part = image.convert("RGB").crop((left, top, left + width, top + height))
        part.save(folder / f"class-{number % CLASSES}" / f"{number}.jpg", quality=85)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images, at any depth")
    parser.add_argument("--count", type=int, default=100_000)
    given = parser.parse_args(arguments)
    sources = sorted(path for path in given.images.rglob("*") if is_image(path.name))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        for label in range(CLASSES):
            (folder / f"class-{label}").mkdir(parents=True)
        chunks = [range(start, min(start + 500, given.count)) for start in range(0, given.count, 500)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(write, [sources] * len(chunks), chunks, [folder] * len(chunks)))
        print(f"{given.count} images, {processor()}, {os.cpu_count()} cores", flush=True)
        for name in ("first", "remembered"):
            command = [sys.executable, "-m", "finetune", "check", str(folder), "--json"]
            began, peak = time.perf_counter(), 0
            with Path(scratch, "out.json").open("w") as out:
                running = psutil.Popen(command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": scratch}, stdout=out)
                while running.poll() is None:
                    with suppress(psutil.NoSuchProcess):
                        peak = max(peak, running.memory_full_info().uss)
                    time.sleep(0.1)
            assert running.returncode == 0, running.returncode
            seconds = time.perf_counter() - began
            print(f"{name}: {seconds:.0f} s, at most {peak / 2**20:.0f} MiB in the main process", flush=True)
    return 0


if __name__ == "__main__":
    entry.run(main)
