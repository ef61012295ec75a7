"""The validation images of a run that the page shows."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import reset_accelerate

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from finetune.inference.predictor import open_run
from finetune.serving.examples import Example, Examples


def examples(run):
    reset_accelerate()
    return Examples(run, open_run(run, "no")).all()


def test_wrong_ones_come_first_then_each_class_in_turn(run):
    found = examples(run)
    wrong = [one.true != one.predicted for one in found]
    assert len(found) == 9
    assert wrong == sorted(wrong, reverse=True)
    right = [one.true for one in found if one.true == one.predicted]
    first = right[: len(set(right))]
    assert len(set(first)) == len(first) >= 2


def test_there_are_none_where_the_run_its_scores_or_its_images_are_gone(run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    unscored = shutil.copytree(run, tmp_path / "unscored")
    (unscored / "validation.safetensors").unlink()
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "validation.safetensors").write_bytes(b"no tensors")
    moved = shutil.copytree(run, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "nowhere")}))
    for folder in (alone, unscored, damaged, moved):
        assert examples(folder) == [], folder.name


def test_what_browsers_do_not_show_becomes_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    content, kind = Example(str(tmp_path / "x.tiff"), "a", "b").content()
    assert kind == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    Image.fromarray(pixels).save(tmp_path / "x.webp")
    content, kind = Example(str(tmp_path / "x.webp"), "a", "b").content()
    assert (content, kind) == ((tmp_path / "x.webp").read_bytes(), "image/webp")
