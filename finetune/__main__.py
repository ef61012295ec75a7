"""`python -m finetune COMMAND …`: use trained models, and inspect runs."""

from __future__ import annotations

import importlib

from finetune.errors import unknown
from finetune.runtime import entry

COMMANDS = {
    "check": "audit a data set: copies, leaks between splits, bad files, likely label errors",
    "predict": "classify images",
    "embed": "write the features of images, and draw them in a plane",
    "evaluate": "score a run on labelled images: accuracy, per-class metrics, calibration, errors",
    "compare": "compare runs in one table, and their curves in one chart",
    "report": "write one HTML page of a run, a cross-validation or several runs",
    "plot": "draw a run's charts and image grids again",
    "demo": "serve models on a page and over HTTP",
    "push": "upload a model and its card to the Hugging Face Hub",
    "cache": "list or clear cached activations and decoded images",
    "export": "export the model: state dict, torch.export, ONNX (also int8), OpenVINO, ExecuTorch",
    "bench": "measure speed and accuracy of a model in each exported form",
}


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; the exit code."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m finetune COMMAND …\n")
        print("\n".join(f"  {command:<9} {meaning}" for command, meaning in COMMANDS.items()))
        print("\nTrain with train.py. A command's options: python -m finetune COMMAND --help")
        return 0
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return importlib.import_module(f"finetune.commands.{name}").main(rest)


if __name__ == "__main__":
    entry.run(main)
