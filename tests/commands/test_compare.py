"""`python -m finetune compare`: runs in one table."""

import csv
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import ROOT


def test_compare_shows_settings_that_differ_best_run_first(trained, call, tmp_path):
    code, out, _ = call("compare", trained / "slow", trained / "fast", "--csv", "--picture", tmp_path / "curves.png")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["run", "lr", "epochs run", "best epoch", "val accuracy", "val loss", "images/s", "seconds"]
    assert sorted(row["lr"] for row in rows) == ["0.0001", "0.003"]
    assert float(rows[0]["val accuracy"]) >= float(rows[1]["val accuracy"])
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5
    code, out, _ = call("compare", trained / "slow", trained / "fast", "--markdown", "--sort", "given")
    assert out.splitlines()[1].startswith("| --- |")
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["slow", "fast"]
    code, out, _ = call("compare", trained / "slow", trained / "fast")
    assert code == 0
    assert all(word in out for word in ("slow", "fast", "0.003", "val accuracy"))


@pytest.mark.slow
def test_the_script_trains_and_compares_recipes(tmp_path, image_folder):
    flags = f"--data {image_folder} --model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 1 --tracker none"
    command = f"PLACE={tmp_path}/runs launch/compare_recipes.sh finetune feature_extractor -- {flags}"
    path = f"{sys.prefix}/bin"
    done = subprocess.run(
        f"PATH={path}:$PATH {command}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout.splitlines()[-2] or "finetune" in done.stdout.splitlines()[-3]
    assert (tmp_path / "runs" / "curves.png").exists()
