"""The built-in set and its backbone: made by code, the same each time, and worth something."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from finetune import starter
from finetune.errors import UserError
from finetune.starter import images
from finetune.surgery import STARTER_FOLDER


def test_drawing_is_a_pure_function_of_species_and_individual():
    first = np.asarray(images.draw(3, 7))
    images.draw(4, 1)
    assert np.array_equal(np.asarray(images.draw(3, 7)), first)
    assert not np.array_equal(np.asarray(images.draw(3, 8)).mean(), first.mean())


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
    card = json.loads((STARTER_FOLDER / "model.json").read_text())
    assert card["model"] == "shufflenet_v2_x0_5"
    assert len(card["classes"]) == 60
    assert load_file(file)["fc.weight"].shape == (60, 1024)
