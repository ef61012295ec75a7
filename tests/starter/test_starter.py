"""The built-in set is drawn by code, the same each time, and its backbone is a model folder."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from finetune import starter
from finetune.errors import UserError
from finetune.models.weights import STARTER_FOLDER
from finetune.starter import images


def test_drawing_is_a_pure_function_of_species_and_individual():
    first = images.draw(3, 7).resize((64, 64))
    drawn = [images.draw(*numbers).resize((64, 64)) for numbers in ((3, 8), (4, 7), (3, 7))]
    distances = [np.abs(np.asarray(one, float) - np.asarray(first, float)).mean() for one in drawn]
    assert distances[-1] == 0
    assert min(distances[:-1]) > 10, "another picture, not the same with other noise"


def test_source_and_target_share_no_species():
    target, source = images.SPECIES["target"], images.SPECIES["source"]
    assert (len(target), len(source)) == (10, 60)
    assert not set(target) & set(source)
    assert not set(target.values()) & set(source.values())
    assert images.COUNTS["source"]["train"] > 5 * images.COUNTS["target"]["train"]


def test_the_set_is_written_once_as_a_folder_of_jpegs(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(images, "COUNTS", {"target": {"train": 2, "val": 1}})
    folder = starter.path("starter")
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 30
    assert Image.open(files[0]).format == "JPEG"
    before = files[0].stat().st_mtime_ns
    assert starter.path("starter") == folder
    assert files[0].stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "finetune").rglob(".*")] == [], "no temporary folder is left"


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Set XDG_CACHE_HOME"):
        starter.path("starter")


def test_any_other_data_is_a_path():
    assert starter.path("photos/birds") == "photos/birds"


def test_the_backbone_is_small_and_a_model_folder():
    file = STARTER_FOLDER / "model.safetensors"
    assert file.stat().st_size < 2_000_000
    metadata = json.loads((STARTER_FOLDER / "model.json").read_text())
    assert metadata["model"] == "shufflenet_v2_x0_5"
    assert len(metadata["classes"]) == 60
    assert load_file(file)["fc.weight"].shape == (60, 1024)
