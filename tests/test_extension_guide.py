"""docs/architecture.md's "Add a data source" and "Add a tracker" are complete: with their changes alone, both work."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from support import CLASSES, ROOT, with_defaults, write_images

MLFLOW = '''"""The functions of MLflow that Accelerate and the guide call; each call becomes a line of the log."""
import json, os
from types import SimpleNamespace

utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))


def __getattr__(name):
    def call(*arguments, **named):
        with open(os.environ["CALLS"], "a") as log:
            print(json.dumps([name, arguments, named], default=str), file=log)
        return {"search_experiments": [], "get_tracking_uri": "file:mlruns"}.get(name, SimpleNamespace())

    return call
'''


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "finetune", folder / "finetune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def follow(guide: str, checkout) -> None:
    """Make the changes of a section: its module, and its lines in another one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (section,) = re.findall(rf"^## {guide}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    ((new, module),) = re.findall(r"`(finetune/[\w/]+\.py)`:\n\n```python\n(.*?)^```", section, re.S | re.M)
    assert not (checkout / new).exists()
    (checkout / new).write_text(module)
    ((changed, lines),) = re.findall(
        r"`(finetune/[\w/]+\.py)`[^`]*(?:`\w+`[^`]*)?```diff\n(.*?)^```", section, re.S | re.M
    )
    source, pairs = (checkout / changed).read_text(), re.findall(r"^-(.*)\n\+(.*)\n", lines, re.M)
    assert len(pairs) == len(lines.splitlines()) / 2 == 2
    for before, after in pairs:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    (checkout / changed).write_text(source)


def train(checkout, *flags: str, **variables: str) -> str:
    command = [sys.executable, "train.py", *with_defaults([*flags, "--output", "run", "--epochs", "1"])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""} | variables
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_data_source_is_a_module_and_a_line(checkout, tmp_path):
    write_images(tmp_path / "folders", 5)
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "folders").rglob("*.jpg"):
        path.rename(tmp_path / "flat" / f"{path.parent.name}_{path.name}")
    follow("Add a data source", checkout)
    assert "12 train, 3 val" in train(checkout, "--data", str(tmp_path / "flat"))
    metadata = json.loads((checkout / "run" / "model" / "model.json").read_text())
    assert metadata["classes"] == list(CLASSES)


@pytest.mark.slow
def test_a_tracker_is_a_module_and_a_line(checkout, image_folder, tmp_path):
    (tmp_path / "packages" / "mlflow-3.0.dist-info").mkdir(parents=True)
    (tmp_path / "packages" / "mlflow-3.0.dist-info" / "METADATA").write_text("Name: mlflow\nVersion: 3.0\n")
    (tmp_path / "packages" / "mlflow.py").write_text(MLFLOW)
    follow("Add a tracker", checkout)
    packages, log = str(tmp_path / "packages"), tmp_path / "calls"
    shown = train(checkout, "--data", str(image_folder), "--tracker", "mlflow", PYTHONPATH=packages, CALLS=str(log))
    assert "MLflow: file:mlruns" in shown
    assert "failed" not in shown
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"start_run", "log_params", "log_metrics", "log_artifacts", "end_run"} <= {name for name, *_ in calls}
    metrics = [arguments[0] for name, arguments, _ in calls if name == "log_metrics"]
    assert any("val_accuracy" in one for one in metrics)
    assert any("summary/best_val_accuracy" in one for one in metrics)
    ((plots, _),) = [arguments for name, arguments, _ in calls if name == "log_artifacts"]
    assert (checkout / plots / "predictions.png").exists()
