"""Test accuracy and time of our recipes and of other ways to fine-tune, on the same images with the same weights.

    python -m benchmarks.accuracy --hymenoptera hymenoptera_data --caltech caltech101 --environment peers \\
        --weights mobilenet_v2=mobilenet_v2.safetensors squeezenet1_0=squeezenet1_0.safetensors --output results

Writes accuracy.md and accuracy.json after each run, and accuracy.png at the end. Runs that accuracy.json has are not
repeated, so the command can be stopped and given again, also from a copy of that file alone; `--seeds 0` draws what
there is. A seed changes the training, never the split, and test images choose nothing.

The peers (benchmarks/peers) run in a virtual environment of their own, which is made on first use: it sees the packages
of the running Python, torch among them, and has benchmarks/peers.txt beside them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks import accuracy_report, image_sets
from benchmarks.__main__ import ROOT
from finetune import recipes
from finetune.commands.bench import processor
from finetune.config.settings import STARTER_MODEL, STARTER_SIZE
from finetune.errors import UserError, unknown
from finetune.models.weights import STARTER_FOLDER
from finetune.runtime import entry

RECIPES = ("feature_extractor", "finetune", "last_layers", "linear_then_finetune", "best")  # those that there are
MODELS, SIZES = ("mobilenet_v2", "squeezenet1_0"), (224, 128)
REQUIREMENTS = Path(__file__).with_name("peers.txt")


@dataclass(frozen=True)
class Peer:
    """A program of `benchmarks.peers`."""

    program: str
    flags: tuple[str, ...] = ()
    packages: bool = True
    """Whether it needs more packages than this project."""
    seeded: bool = True
    """Whether the seed changes its result; else it runs once."""


PEERS = {
    "sklearn:raw": Peer("sklearn_probe", seeded=False),
    "sklearn:standardised": Peer("sklearn_probe", ("--standardise",), seeded=False),
    "fastai": Peer("fastai_fine_tune"),
    "timm": Peer("timm_fine_tune"),
    "tutorial:feature_extractor": Peer("tutorial", ("--frozen",), packages=False),
    "tutorial:finetune": Peer("tutorial", packages=False),
}
DEFAULT_METHODS = [f"ours:{name}" for name in RECIPES if name in recipes.NAMES] + list(PEERS)


@dataclass(frozen=True)
class Job:
    """One run."""

    set: str
    model: str
    size: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.set}-{self.model}-{self.size}-{self.method.replace(':', '_')}-{self.seed}"


def methods_of(words: list[str]) -> list[str]:
    """Full names of methods; a name without its part after the colon means all of those of the default."""
    found: list[str] = []
    for word in words:
        ours = word.removeprefix("ours:") if word.startswith("ours:") else None
        if ours is not None and ours not in recipes.NAMES:
            raise unknown("recipe", ours, recipes.NAMES)
        matching = [word] if ours else [name for name in DEFAULT_METHODS if word in (name, name.partition(":")[0])]
        if not matching:
            raise unknown("method", word, DEFAULT_METHODS)
        found += matching
    return list(dict.fromkeys(found))


def jobs(given: argparse.Namespace, methods: list[str]) -> list[Job]:
    """All runs, seed by seed: the table is whole after the first seed, and the others sharpen it."""
    found = []
    for seed in range(given.seeds):
        for name in (*given.sets, *given.csv):
            networks = [(model, size) for model in given.backbones for size in given.sizes]
            for model, size in networks if name != "starter" else [(STARTER_MODEL, STARTER_SIZE)]:
                found += [
                    Job(name, model, size, method, seed)
                    for method in methods
                    if seed == 0 or method not in PEERS or PEERS[method].seeded
                ]
    return found


def make_environment(folder: Path) -> Path:
    """The Python of the peers' virtual environment, which is made where it is missing or of other requirements."""
    python, mark = folder / "bin" / "python", folder / REQUIREMENTS.name
    if not (mark.exists() and mark.read_text() == REQUIREMENTS.read_text()):
        print(f"making the peers' environment in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        # Python adds each line of a .pth file to the end of its path, so torch is not installed a second time.
        Path(own, "running.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        mark.write_text(REQUIREMENTS.read_text())
    return python


def measure(job: Job, data: Path, weights: Path, python: Path, folder: Path) -> dict:
    """Run a job in a process of its own: its accuracies, versions and processor time. Its output goes to a .log file.

    Processor seconds are those of the process and its workers, so that other load on the machine does not count. It
    begins without any cache. Raises `CalledProcessError` where it fails.
    """
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    words = ["--data", data, "--model", job.model, "--weights", weights, "--seed", job.seed]
    if job.method in PEERS:
        peer = PEERS[job.method]
        command = [python if peer.packages else sys.executable, "-m", f"benchmarks.peers.{peer.program}"]
        command += [*words, "--size", job.size, *peer.flags]
    else:
        command = [sys.executable, "train.py", "--recipe", job.method.removeprefix("ours:"), *words]
        command += ["--image-size", job.size, "--tracker", "none", "--output", scratch / "run"]
    caches = {name: str(scratch / "cache") for name in ("XDG_CACHE_HOME", "FASTAI_HOME", "HF_HOME")}
    log = folder / f"{job.name}.log"
    began, used = time.perf_counter(), processor_seconds()
    with log.open("w") as out:
        subprocess.run(
            list(map(str, command)), cwd=ROOT, env=os.environ | caches, stdout=out, stderr=subprocess.STDOUT, check=True
        )
    times = {"seconds": processor_seconds() - used, "wall_seconds": time.perf_counter() - began}
    if job.method in PEERS:
        result = json.loads(log.read_text().splitlines()[-1])
    else:
        summary, config = (json.loads((scratch / "run" / f"{name}.json").read_text()) for name in ("summary", "config"))
        versions = config["versions"] | {"git_commit": config["git_commit"]}
        result = {"test_accuracy": summary["test_accuracy"], "val_accuracy": summary["best_val_accuracy"]}
        result |= {"versions": versions}
    shutil.rmtree(scratch, ignore_errors=True)
    return result | times


def processor_seconds() -> float:
    """Processor time of all child processes that have ended, in the program and in the kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_records(folder: Path) -> list[dict]:
    """The records of all runs that were made."""
    path = folder / accuracy_report.RECORDS
    return json.loads(path.read_text())["runs"] if path.exists() else []


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, with the defaults that depend on what is given. Exits with 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hymenoptera", type=Path, help="the folder of ants and bees, with train/ and val/")
    parser.add_argument("--caltech", type=Path, help="the folder of Caltech-101's class folders")
    parser.add_argument("--csv", nargs="*", default=[], type=Path, help="sets of your own: path, label, split in each")
    parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE", help="ImageNet weights")
    parser.add_argument("--environment", type=Path, help="folder of the peers' virtual environment, made if missing")
    parser.add_argument("--output", type=Path, required=True, help="folder for the sets, the runs and the table")
    parser.add_argument(
        "--sets", nargs="*", choices=image_sets.SETS, help="default: those of the folders; with --csv none"
    )
    parser.add_argument("--backbones", nargs="*", choices=MODELS, help="default: those with weights")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES), help="sides of the input in pixels")
    parser.add_argument(
        "--methods", nargs="*", default=DEFAULT_METHODS, help=f"{', '.join(DEFAULT_METHODS)}; ours:NAME, any recipe"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted from 0")
    given = parser.parse_args(arguments)
    folders = {None: Path(), "hymenoptera": given.hymenoptera, "caltech": given.caltech}
    wants = {name: needs for name, (needs, _) in image_sets.SETS.items()}
    for file in given.csv:
        image_sets.check(file.stem, file)
    names = [file.stem for file in given.csv]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"--csv: two files are named {twice[0]}; rename one")
    given.csv = {file.stem: file.resolve() for file in given.csv}
    if given.sets is None:
        given.sets = [name for name, needs in wants.items() if folders[needs]] if not given.csv else []
    if lacking := [name for name in given.sets if not folders[wants[name]]]:
        parser.error(f"{lacking[0]} needs --{wants[lacking[0]]} FOLDER")
    given.weights = {name: Path(file).resolve() for name, _, file in (word.partition("=") for word in given.weights)}
    given.backbones = given.backbones or [name for name in MODELS if name in given.weights]
    if given.csv or any(name != "starter" for name in given.sets):
        if lacking := [name for name in given.backbones or MODELS if name not in given.weights]:
            parser.error(f"--weights {lacking[0]}=FILE is missing")
        if missing := [file for file in given.weights.values() if not file.is_file()]:
            parser.error(f"--weights: there is no file {missing[0]}")
    given.weights[STARTER_MODEL] = STARTER_FOLDER / "model.safetensors"
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    methods = methods_of(given.methods)
    packages = any(method in PEERS and PEERS[method].packages for method in methods)
    if packages and not given.environment:
        raise UserError("scikit-learn, fastai and timm need --environment FOLDER, or choose other --methods.")
    output = given.output.resolve()
    folders = {"hymenoptera": given.hymenoptera, "caltech": given.caltech}
    files = {name: image_sets.make(name, folders.get(image_sets.SETS[name][0]), output / "sets") for name in given.sets}
    files |= given.csv
    python = make_environment(given.environment.resolve()) if packages else Path(sys.executable)
    runs = output / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    order = {"sets": list(image_sets.SETS), "methods": DEFAULT_METHODS}
    records, failed, todo = read_records(output), [], jobs(given, methods)
    known = {Job(**{field.name: record[field.name] for field in fields(Job)}) for record in records}
    for number, job in enumerate(todo, 1):
        if job not in known:
            machine = {"processor": processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")}
            machine["load before"] = os.getloadavg()[0]
            try:
                result = measure(job, files[job.set], given.weights[job.model], python, runs)
            except subprocess.CalledProcessError as error:
                failed.append(job)
                print(f"{job.name} failed with exit code {error.returncode}: see {runs / job.name}.log", flush=True)
                continue
            records.append(asdict(job) | result | {"machine": machine})
            scores = f"test {result['test_accuracy']:.4f}, {result['seconds']:.0f} processor seconds"
            print(f"{number}/{len(todo)} {job.name}: {scores}", flush=True)
            accuracy_report.write(output, records, order)
    if rows := accuracy_report.write(output, records, order):
        accuracy_report.picture(rows, output / "accuracy.png")
    print((output / "accuracy.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    entry.run(main)
