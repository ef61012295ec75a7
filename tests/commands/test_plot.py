"""`python -m finetune plot`: a run's charts and image grids drawn again."""

import json
import shutil

import pytest


@pytest.mark.slow
def test_plot_draws_a_runs_pictures_again(trained, call, tmp_path):
    shutil.copytree(trained / "fast", tmp_path / "run")
    names = {path.name for path in (trained / "fast" / "plots").iterdir()}
    charts = {"curves.png", "confusion.png", "per_class.png", "calibration.png"}
    assert names == charts | {"augmentations.png", "predictions.png", "top_losses.png"}
    for keep_scores in (True, False):  # without them the images are scored again
        shutil.rmtree(tmp_path / "run" / "plots")
        if not keep_scores:
            (tmp_path / "run" / "validation.safetensors").unlink()
        assert call("plot", tmp_path / "run")[0] == 0
        for name in names:
            assert (tmp_path / "run" / "plots" / name).read_bytes() == (trained / "fast" / "plots" / name).read_bytes()
    shutil.copy(trained / "fast" / "validation.safetensors", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "plots")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"data": "gone"}))
    code, out, _ = call("plot", tmp_path / "run")
    assert code == 0
    assert "Only the charts are drawn" in out
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == charts
