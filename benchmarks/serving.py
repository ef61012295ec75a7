"""Throughput of `python -m finetune demo` under load, against that of `predict` on the same images.

    pip install locust
    python -m benchmarks.serving RUN --data hymenoptera_data/val --output results

Locust's clients send one image after the other, each as a form, without a pause. `predict` runs before and after, in a
process of its own. All of it shares the machine, the clients too. Writes serving.json.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from finetune.commands.predict import find

ROOT = Path(__file__).parent.parent
PREDICT = """
import itertools, sys, time
from pathlib import Path
from finetune.inference.predictor import open_run, predict
run, seconds, *paths = sys.argv[1:]
predictor = open_run(Path(run), "run")
next(predict(predictor, paths[:1], 5, 16, -1))
began, count = time.perf_counter(), 0
while (took := time.perf_counter() - began) < float(seconds):
    count += sum(1 for _ in predict(predictor, paths, 5, 16, -1))
print(count / took)
"""
CLIENT = """
import itertools, random
from pathlib import Path
from locust import FastHttpUser, task

FILES = [(path, Path(path).read_bytes()) for path in {paths!r}]
random.Random(0).shuffle(FILES)
TURNS = itertools.cycle(FILES)

class Visitor(FastHttpUser):
    @task
    def predict(self):
        path, data = next(TURNS)
        with self.client.post("/predict", files={{"file": ("image.jpg", data)}}, catch_response=True) as answer:
            if answer.status_code != 200 or not answer.json()["predictions"]:
                answer.failure(answer.text)
"""


def predict_rate(run: str, seconds: float, paths: list[str]) -> float:
    """Images per second of `predict`, at its default batch size."""
    command = [sys.executable, "-c", PREDICT, run, str(seconds), *paths]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1])


def load(address: str, given: argparse.Namespace, paths: list[str], server: psutil.Process) -> tuple[dict, list[int]]:
    """Locust's statistics, and the server's resident memory in bytes, once a second."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "client.py"
        script.write_text(CLIENT.format(paths=paths))
        command = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--host", address, "--json"]
        command += [
            "--users",
            str(given.clients),
            "--spawn-rate",
            str(given.clients),
            "--run-time",
            f"{given.seconds}s",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        memory = []
        while process.poll() is None:
            memory.append(server.memory_info().rss)
            time.sleep(1)
        (found,) = json.loads(process.stdout.read())
    return found, memory


def percentile(times: dict[str, int], fraction: float) -> float:
    """A percentile in milliseconds of Locust's histogram."""
    left = fraction * sum(times.values())
    for milliseconds, count in sorted((float(key), value) for key, value in times.items()):
        left -= count
        if left <= 0:
            return milliseconds
    raise AssertionError("unreachable: the counts add up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--clients", type=int, default=50, help="concurrent visitors")
    parser.add_argument("--seconds", type=int, default=60, help="of load")
    parser.add_argument("--output", type=Path, required=True, help="folder for serving.json")
    given = parser.parse_args()
    run, paths = str(Path(given.run).resolve()), find([str(given.data.resolve())])
    rates = [predict_rate(run, given.seconds / 2, paths)]
    command = [sys.executable, "-m", "finetune", "demo", run, "--port", "0"]
    demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    address = re.search(r"http://\S+", demo.stdout.readline()).group()
    with tempfile.TemporaryFile() as log:  # its lines have to be read
        subprocess.Popen(["cat"], stdin=demo.stdout, stdout=log)
        found, memory = load(address, given, paths, psutil.Process(demo.pid))
        demo.terminate()
        code = demo.wait(30)
    rates.append(predict_rate(run, given.seconds / 2, paths))
    served = found["num_requests"] / (found["last_request_timestamp"] - found["start_time"])
    row = {
        "requests": found["num_requests"],
        "failures": found["num_failures"],
        "served_per_second": served,
        "predict_per_second": rates,
        "ratio": served / (sum(rates) / 2),
        "median_ms": percentile(found["response_times"], 0.5),
        "p95_ms": percentile(found["response_times"], 0.95),
        "slowest_ms": found["max_response_time"],
        "memory_mib": [round(memory[k * (len(memory) - 1) // 6] / 2**20) for k in range(7)],
        "exit_code": code,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "serving.json").write_text(json.dumps(row, indent=2) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
