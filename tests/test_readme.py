"""Every command of the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.strip().splitlines()]
TRAINING = [line for line in COMMANDS if "train.py" in line and not line.startswith("pip")]


def run(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, image_folder):
    """The project as links in an empty folder, so that runs/ and path/to/photos are made there."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "finetune", "launch", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "photos").symlink_to(image_folder)
    return folder


def test_the_two_commands_do_all_of_the_set_up():
    first, second = [line for line in COMMANDS if line.startswith("pip install -r requirements.txt")][:2]
    assert first.endswith("&& accelerate launch train.py --recipe feature_extractor")
    assert second.endswith("&& python -m pytest")
    assert len(COMMANDS) >= 8
    assert f"{second.partition('&& ')[2]}\n" in (ROOT / ".ci" / "run").read_text(), "CI calls the README's test command"


def test_the_main_job_runs_as_written_and_transfer_is_worth_something(checkout, tmp_path):
    command = COMMANDS[0].partition("&& ")[2]
    done = run(command, checkout, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    best = float(re.search(r"Best validation accuracy (\d\.\d+)", done.stdout).group(1))
    assert best >= 0.9
    assert "\r" not in done.stdout, "no progress bar in a log file"
    assert len(done.stdout.splitlines()) < 50
    folder = next((checkout / "runs").iterdir())
    assert folder.name.startswith("feature_extractor-")


@pytest.mark.slow
def test_the_same_net_from_scratch_learns_little_in_the_same_budget(checkout, tmp_path):
    scratch = next(line for line in re.findall(r"`(python train.py[^`]*--weights none[^`]*)`", TEXT))
    done = run(f"{scratch} --tracker none --output {tmp_path}/scratch", checkout)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"Best validation accuracy (\d\.\d+)", done.stdout).group(1)) <= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_every_other_training_command_is_understood(command, checkout):
    """Up to its plan: without a network there are no weights to download, so random ones stand in for them."""
    words = shlex.split(command)
    if "--help" not in words and "--preview" not in words:
        words.append("--plan")
    if "--model" in words or "path/to/photos" in words:
        words += ["--weights", "none"]
    done = run(shlex.join(words), checkout)
    assert done.returncode == 0, done.stderr


def test_the_lines_that_load_a_model_into_plain_torchvision_run(train, tmp_path, monkeypatch):
    code, output = train("--model", "shufflenet_v2_x0_5")
    assert code == 0
    monkeypatch.chdir(output)
    source = re.findall(r"```python\n(.*?)```", TEXT, re.S)[0]
    names: dict = {}
    exec(source, names)
    assert names["model"].fc.out_features == 3


def test_the_files_that_the_readme_names_are_there():
    named = [*re.findall(r"\]\(((?!http)[^)]+)\)", TEXT), *re.findall(r"`((?:launch|finetune)/[\w./]+)`", TEXT)]
    assert len(named) >= 3
    for name in named:
        assert (ROOT / name).exists(), name
