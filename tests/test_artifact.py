"""A model folder opens as it was saved, and a hostile or damaged one is refused before anything happens."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import archs, artifact, surgery
from finetune.errors import UserError
from finetune.recipe import Net

TRANSFORM = {"resize": 32, "crop": 32, "interpolation": "bilinear", "mean": [0], "std": [1]}
LINE = {"epoch": 1, "val_accuracy": 0.5, "val_loss": 0.7}


def write(folder, **settings):
    net = Net(**{"model": "shufflenet_v2_x0_5", "weights": "none", "image_size": 32, **settings})
    torch.manual_seed(0)
    model, preprocess, _ = surgery.build(net, 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    artifact.save(folder, model.state_dict(), net, ["a", "b", "c"], preprocess, LINE)
    return model.eval(), preprocess


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "mlp", "hidden": (8, 6), "head_batchnorm": True},
        {"head": "concat_pool", "hidden": (8,)},
        {"pool_size": 2, "in_channels": 1},
        {"in_channels": 5},
        {"model": "squeezenet1_0", "image_size": 64},
    ],
)
def test_a_model_opens_as_it_was_saved(tmp_path, settings):
    model, preprocess = write(tmp_path / "model", **settings)
    for folder in (tmp_path, tmp_path / "model"):  # a run's folder, or its model folder
        opened = artifact.load(folder)
        assert opened.classes == ["a", "b", "c"]
        assert opened.preprocess == preprocess
        x = torch.randn(2, settings.get("in_channels", 3), preprocess.crop, preprocess.crop)
        with torch.no_grad():  # with gradients, which the opened one asks for none of, other kernels may be taken
            assert torch.equal(opened.model(x), model(x))


def test_an_opened_model_holds_copies_of_its_file(tmp_path):
    model, _ = write(tmp_path / "model")
    opened = artifact.load(tmp_path).model.state_dict()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in opened.values()), "as torch aligns its own"
    path = tmp_path / "model" / "model.safetensors"
    with path.open("r+b") as file:  # in place: a new file would leave the old one's pages alone
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(opened[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_a_model_of_every_family_opens_as_it_was_saved(tmp_path):
    names = [min(family.models.split(), key=len) for family in archs.FAMILIES]
    for name in names:
        model, preprocess = write(tmp_path / name, model=name, image_size=None)
        x = torch.randn(1, 3, preprocess.crop, preprocess.crop)
        # Without gradients a transformer takes another path through its attention, which rounds otherwise.
        torch.testing.assert_close(artifact.load(tmp_path / name).model(x), model(x), msg=name)
    assert len(names) >= 20


def edit(folder, **changes):
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "made by a newer version (format 2"),
        ({"format": "1"}, "no format number"),
        ({"classes": ["a"] * 3}, "classes must be different names"),
        ({"classes": [f"{k}" for k in range(10**5)]}, "100000 classes fit no tensor"),
        ({"model": "../../etc/passwd"}, "is none of torchvision's"),
        ({"model": "resnet152"}, "do not fit resnet152"),
        ({"head": "mlp", "hidden": [10**12]}, "fits no tensor"),
        ({"head": "concat_pool", "hidden": [1024], "pool_size": 10**6}, "pool_size is no size"),
        ({"in_channels": 10**9}, "mean must be 1000000000 numbers"),
        ({"dropout": "much"}, "dropout must be a share"),
        ({"preprocess": TRANSFORM | {"crop": 10**9}}, "sides"),
        ({"preprocess": TRANSFORM}, "3 numbers"),
        ({"preprocess": 3}, "damaged"),
    ],
)  # fmt: skip
def test_a_card_that_lies_is_refused(tmp_path, changes, message):
    write(tmp_path / "model")
    edit(tmp_path / "model", **changes)
    with pytest.raises(UserError) as caught:
        artifact.load(tmp_path)
    assert message in str(caught.value)


def test_damaged_and_missing_files_are_named(tmp_path):
    write(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="no whole safetensors file"):
        artifact.load(tmp_path)
    weights.write_bytes(b"\xff" * 8 + whole)  # a header of 2^64 bytes
    with pytest.raises(UserError, match="no whole safetensors file"):
        artifact.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        artifact.load(tmp_path)
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        artifact.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        artifact.load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished an epoch"):
        artifact.load(tmp_path / "run")


def test_another_shape_or_name_of_a_tensor_is_refused(tmp_path):
    write(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    state = load_file(weights)
    state["fc.weight"] = torch.zeros(4, 1024)
    save_file({**state, "more": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match=r"2 tensors .* \(fc\.weight, more\)"):
        artifact.load(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path):
    class Boom:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    write(tmp_path / "model")
    torch.save({"fc.weight": Boom()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError):
        artifact.load(tmp_path)
    assert not (tmp_path / "boom").exists()


def test_links_out_of_the_folder_are_not_followed_but_for_the_hubs_cache(tmp_path):
    write(tmp_path / "secret")
    folder = tmp_path / "model"
    shutil.copytree(tmp_path / "secret", folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "secret" / "model.safetensors")
    with pytest.raises(UserError, match="link out of its folder"):
        artifact.load(folder)
    hub = tmp_path / "models--me--bees"
    shutil.copytree(tmp_path / "secret", hub / "blobs")
    (hub / "snapshots" / "abc").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (hub / "snapshots" / "abc" / name).symlink_to(f"../../blobs/{name}")
    assert artifact.load(hub / "snapshots" / "abc").classes == ["a", "b", "c"]
