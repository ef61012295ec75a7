"""What the documents say: their texts, commands and lines of Python; and how to run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support import ROOT, reset_accelerate

from finetune import __main__ as program
from finetune.runtime.entry import exit_code

ARCHITECTURE = ROOT / "docs" / "architecture.md"
RUN_FROM = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {ARCHITECTURE})]
DOCUMENTS = [*RUN_FROM, ARCHITECTURE, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
SERVER = "127.0.0.1:8000"  # in the documents' requests
TEXTS = {path: path.read_text() for path in DOCUMENTS}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[path], re.S | re.M)


# In the documents' order, each once.
COMMANDS = [*dict.fromkeys(line for path in RUN_FROM for block in blocks(path, "bash") for line in block.splitlines())]
# Each kind's pattern and its least number of commands. A command is of the first kind that matches.
KINDS = {
    "the README's two": (r"pip install -r requirements.txt && ", 2),
    "set-up": (r"pip install |pre-commit install", 4),
    "tests": (r"(\w+=\w+ )*python -m pytest", 7),
    "tools": (r"ruff |mypy|\.ci/run", 4),
    "benchmarks": (r"python -m benchmarks", 3),
    "evaluation on several processes": (r"accelerate launch .*-m finetune ", 1),
    "servers": (r"python -m finetune demo ", 2),
    "requests to a server": (r"curl ", 3),
    "commands": (r"python -m finetune ", 20),
    "GPUs, clusters, trackers": (r"(\w+=\S+ )?sbatch |wandb |launch/|.*launch/multi_node|.*launch/(multi_)?gpu", 10),
    "stop and resume": (r"python train.py .*--output runs/mine", 2),
    "training": (r"(accelerate launch|torchrun|python) ", 30),
}
KIND_OF = {
    command: next((k for k, (start, _) in KINDS.items() if re.match(start, command)), None) for command in COMMANDS
}


def of_kind(kind: str) -> list[str]:
    found = [command for command in COMMANDS if KIND_OF[command] == kind]
    assert len(found) >= KINDS[kind][1], f"{kind}: only {found}"
    return found


# Recipes and their commands in tables and sentences.
INLINE = sorted(
    {line for path in RUN_FROM for line in re.findall(r"`(python train\.py[^`]*)`", TEXTS[path]) if "--" in line}
)


def run(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


def call(words: list[str]) -> int:
    """Run `python -m finetune` in this process."""
    reset_accelerate()
    try:
        return exit_code(program.main, words)
    except SystemExit as end:  # --help
        return end.code


def python_blocks() -> list[tuple[Path, str]]:
    return [(path, block) for path in RUN_FROM for block in blocks(path, "python")]
