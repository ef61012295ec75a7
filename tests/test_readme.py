"""Every command of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, reset_accelerate

from finetune import __main__ as program
from finetune import recipes
from finetune.entry import exit_code
from finetune.export import SUFFIXES

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.strip().splitlines()]
TRAINING = [line for line in COMMANDS if "train.py" in line and "--resume" not in line and not line.startswith("pip")]


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


@pytest.mark.slow
def test_the_commands_that_stop_and_resume_run(checkout):
    first, again = [line for line in COMMANDS if "--output runs/mine" in line]
    assert again == f"{first} --resume"
    tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 1 --tracker none"
    assert run(f"{first} {tiny}", checkout).returncode == 0
    done = run(f"{again} {tiny}", checkout)
    assert "Going on from runs/mine/checkpoints/" in done.stdout
    assert done.returncode == 0


def test_commands_for_a_cluster_name_scripts_and_recipes_that_exist():
    lines = [line for line in COMMANDS if "sbatch" in line]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)
        assert (ROOT / next(word for word in words if word.startswith("launch/"))).exists()
        assert words[words.index("--recipe") + 1] in recipes.NAMES


VERBS = [line for line in COMMANDS if line.startswith("python -m finetune")]


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A run's folder with an image in it, whose path is RUN/image.jpg."""
    import train as script

    folder = tmp_path_factory.mktemp("readme") / "RUN"
    reset_accelerate()
    flags = (
        f"--recipe feature_extractor --data {image_folder} --output {folder} --tracker none --precision no --epochs 1"
    )
    flags += " --model shufflenet_v2_x0_5 --image-size 32 --weights none"
    assert script.main(flags.split()) == 0
    shutil.copy(image_folder / "val" / "red" / "00.jpg", folder / "image.jpg")
    return folder


def test_every_verb_of_the_readme_runs(trained, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(trained)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "photos").symlink_to(image_folder)
    for line in VERBS:
        reset_accelerate()
        assert exit_code(program.main, shlex.split(line)[3:]) == 0, (line, capsys.readouterr().err)
    assert len(VERBS) >= 8
    assert {shlex.split(line)[3] for line in VERBS} == set(program.VERBS) - {"push"}


def test_every_python_line_of_the_readme_runs(trained, monkeypatch, capsys):
    """Those that use an export need one; each export's lines share their names with the preprocessing's."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    kinds = ["finetune.load", "model/model.json", "v2.Compose", "model.pth", "torch.export.load", "onnxruntime"]
    assert [kind in block for kind, block in zip(kinds, blocks, strict=True)] == [True] * 6
    monkeypatch.chdir(trained)
    for kind in ("state-dict", "torch-export"):
        if not (trained / "export" / f"model{SUFFIXES[kind]}").exists():
            assert exit_code(program.main, ["export", ".", "--format", kind]) == 0, capsys.readouterr().err
    monkeypatch.chdir(trained.parent)
    (trained.parent / "image.jpg").symlink_to(trained / "image.jpg")
    exec(blocks[0].replace('"layerwise_lr", model="resnet18"', '"layerwise_lr", model="shufflenet_v2_x0_5"'), {})
    monkeypatch.chdir(trained)
    plain: dict = {}
    exec(blocks[1], plain)
    assert plain["model"].fc.out_features == 3
    names: dict = {}
    for block in blocks[2:5]:
        exec(block, names)
    said = names["logits"]
    model = names["model"].eval()
    image = names["transform"](names["Image"].open("image.jpg").convert("RGB"))[None]
    assert (model(image) - said).abs().max() < 1e-4, "two exports of one model"


@pytest.mark.slow
def test_the_readmes_lines_for_onnx_run(trained, monkeypatch, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    monkeypatch.chdir(trained)
    for kind in ("torch-export", "onnx"):
        if not (trained / "export" / f"model{SUFFIXES[kind]}").exists():
            assert exit_code(program.main, ["export", ".", "--format", kind]) == 0, capsys.readouterr().err
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    for k in (2, 4, 5):
        exec(blocks[k], names)
    assert names["logits"].shape == (1, 3)


def test_the_files_that_the_readme_names_are_there():
    named = [*re.findall(r"\]\(((?!http)[^)]+)\)", TEXT), *re.findall(r"`((?:launch|finetune)/[\w./]+)`", TEXT)]
    assert len(named) >= 3
    for name in named:
        assert (ROOT / name).exists(), name
