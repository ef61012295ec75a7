"""`demo`: serve models over HTTP, with a page to try them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Literal

from finetune.commands import BatchSize, RunsArgument, WeightsOption
from finetune.config.command_line import parse
from finetune.config.settings import Bounds
from finetune.errors import UserError

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module: package


@dataclass(frozen=True)
class Options:
    """Serve models on a page, and as POST /predict, GET /model and GET /health. Ctrl-C ends it.

    Only this machine can reach it by default. Pictures are not stored; the log has their size, the answer and the time.
    """

    runs: RunsArgument
    """Runs' folders, model folders, or names of torchvision models, as they were pretrained on ImageNet. The page shows
    the answers of several side by side."""
    weights: WeightsOption = "default"
    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0: all of this machine's, so that others can reach it."""
    port: Annotated[int, Bounds(at_least=0, at_most=65_535)] = 8000
    """0: any that is free."""
    allow_host: tuple[str, ...] = ()
    """Further host names that visitors may use, such as that of a proxy in front. Others are refused."""
    batch_size: BatchSize = 16
    """Images of several visitors are computed as one batch, padded to this size, as in predict: the same for the same
    answers to the last bit. A smaller one answers a single visitor sooner."""
    precision: Literal["run", "auto", "no", "bf16", "fp16"] = "run"
    """run: as in the first run's training. Others: as for train.py."""


def main(arguments: list[str]) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = parse(Options, "python -m finetune demo", arguments)
    if not options.runs:
        raise UserError("demo takes a run or more.")
    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise UserError(f"demo needs packages that are not installed: pip install {' '.join(missing)}")

    from finetune.serving import server

    with server.bind(options.host, options.port) as bound:  # before the models: a port in use is told at once
        from finetune.inference.predictor import open_run
        from finetune.serving import app, served

        models, precision = [], options.precision
        for run in options.runs:
            predictor = open_run(run, precision, weights="default" if run.exists() else options.weights)
            precision = predictor.accelerator.mixed_precision  # one for all: Accelerate has one per process
            models.append(served.serve(run, predictor, options.batch_size, [one.name for one in models]))
        address, port = bound.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"{', '.join(one.name for one in models)}: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
        server.run(app.make(models, options.host, options.allow_host), bound)
    for one in models:
        one.batcher.close()
    return 0
