"""A model folder loads as it was saved, and a hostile or damaged one is refused before memory is allocated."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import write_model

from finetune.errors import UserError
from finetune.models import architectures, model_folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "mlp", "hidden": (8, 6), "head_batchnorm": True},
        {"head": "concat_pool", "hidden": (8,)},
        {"pool_size": 2, "in_channels": 1},
        {"in_channels": 5},
        {"model": "squeezenet1_0", "image_size": 64},
        {"model": "mnasnet0_5", "image_size": 64},  # which reads its version from the state dict
    ],
)
def test_a_model_loads_as_it_was_saved(tmp_path, settings):
    model, preprocess = write_model(tmp_path / "model", **settings)
    for folder in (tmp_path, tmp_path / "model"):  # a run's folder, or its model folder
        loaded = model_folder.load(folder)
        assert loaded.classes == ["a", "b", "c"]
        assert loaded.preprocess == preprocess
        x = torch.randn(2, settings.get("in_channels", 3), preprocess.crop, preprocess.crop)
        with torch.no_grad():  # the loaded one needs no gradients, with which kernels may differ
            assert torch.equal(loaded.model(x), model(x))


def test_a_loaded_model_holds_copies_of_its_file(tmp_path):
    model, _ = write_model(tmp_path / "model")
    loaded = model_folder.load(tmp_path).model.state_dict()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.values()), "as torch aligns its own"
    path = tmp_path / "model" / "model.safetensors"
    with path.open("r+b") as file:  # in place: a new file would not change the mapped one
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_a_model_of_every_family_loads_as_it_was_saved(tmp_path):
    names = [min(family.models.split(), key=len) for family in architectures.FAMILIES]
    for name in names:
        model, preprocess = write_model(tmp_path / name, model=name, image_size=None)
        x = torch.randn(1, 3, preprocess.crop, preprocess.crop)
        # Without gradients a transformer takes another path through its attention, which rounds differently.
        torch.testing.assert_close(model_folder.load(tmp_path / name).model(x), model(x), msg=name)
    assert len(names) >= 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [f"{k}" for k in range(10**5)]}, "no tensor has 100000 classes"),
        ({"model": "resnet152"}, "do not fit resnet152"),
        ({"head": "mlp", "hidden": [65_000]}, "no tensor has the hidden layers"),
    ],
)
def test_metadata_that_does_not_describe_the_tensors_is_refused(tmp_path, changes, message):
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        model_folder.load(tmp_path)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    write_model(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="no whole safetensors file"):
        model_folder.load(tmp_path)
    weights.write_bytes(b"\xff" * 8 + whole)  # a header of 2^64 bytes
    with pytest.raises(UserError, match="no whole safetensors file"):
        model_folder.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        model_folder.load(tmp_path)
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        model_folder.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        model_folder.load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished an epoch"):
        model_folder.load(tmp_path / "run")


def test_a_tensor_of_another_shape_or_name_is_refused(tmp_path):
    write_model(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    state = load_file(weights)
    state["fc.weight"] = torch.zeros(4, 1024)
    save_file({**state, "more": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match=r"2 tensors .* \(fc\.weight, more\)"):
        model_folder.load(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path):
    class Boom:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    write_model(tmp_path / "model")
    torch.save({"fc.weight": Boom()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError):
        model_folder.load(tmp_path)
    assert not (tmp_path / "boom").exists()


def test_a_link_out_of_the_folder_is_followed_only_in_the_hubs_cache(tmp_path):
    write_model(tmp_path / "secret")
    folder = tmp_path / "model"
    shutil.copytree(tmp_path / "secret", folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "secret" / "model.safetensors")
    with pytest.raises(UserError, match="link out of its folder"):
        model_folder.load(folder)
    hub = tmp_path / "models--me--bees"
    shutil.copytree(tmp_path / "secret", hub / "blobs")
    (hub / "snapshots" / "abc").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (hub / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{name}")
    assert model_folder.load(hub / "snapshots" / "abc").classes == ["a", "b", "c"]
