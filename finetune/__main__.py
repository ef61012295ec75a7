"""`python -m finetune VERB …`: use a model that was trained, and look at runs."""

from __future__ import annotations

import importlib

from finetune import entry
from finetune.errors import unknown

VERBS = {
    "predict": "classify images",
    "evaluate": "score a run on labelled images: accuracy, per class, calibration, the errors",
    "compare": "one table of any number of runs, and their curves together",
    "plot": "draw a run's pictures again",
    "push": "put a model and its card on the Hugging Face Hub",
    "cache": "list or clear what is kept of frozen parts and of decoded images",
    "export": "write the model as a state dict, for torch.export or as ONNX, and check it",
}


def main(arguments: list[str]) -> int:
    """Run the verb that the first argument names; the exit code."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: python -m finetune VERB …\n")
        print("\n".join(f"  {name:<9} {meaning}" for name, meaning in VERBS.items()))
        print("\nTrain with train.py. What a verb takes: python -m finetune VERB --help")
        return 0
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    command = importlib.import_module(f"finetune.commands.{verb}")
    return command.main(rest)


if __name__ == "__main__":
    entry.run(main)
