"""Weights go where they belong, and wrong ones are refused by name."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support import write_model

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import surgery

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    model = torchvision.models.get_model(NAME, weights=None).eval()
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_weights_are_loaded_and_the_new_head_starts_at_zero(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model, preprocess, _ = surgery.build(Net(model=NAME, weights=str(tmp_path / "w.safetensors")), 5)
    for key, value in model.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(value, state[key]), key
    assert model.fc.weight.shape == (5, 1024)
    assert not model.fc.weight.any()
    assert (preprocess.resize, preprocess.crop, preprocess.interpolation) == (256, 224, "bilinear")
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())


def test_a_model_holds_copies_of_a_weights_file(state, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    model = surgery.build(Net(model=NAME, weights=str(path)), 5)[0]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in model.state_dict().values()), "as torch aligns its own"
    with path.open("r+b") as file:  # in place: a new file would not change the mapped one
        file.write(bytes(path.stat().st_size))
    held = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert len(held) > 100
    assert all(torch.equal(value, state[key]) for key, value in held.items())


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_pth_files_with_the_usual_wrappers_are_read(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "w.pth")
    model, _, _ = surgery.build(Net(model=NAME, weights=str(tmp_path / "w.pth")), 5)
    assert torch.equal(model.conv1[0].weight, state["conv1.0.weight"])


def test_a_pth_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.0.weight": Boom()}))
    with pytest.raises(UserError, match="is not a weights file"):
        surgery.build(Net(model=NAME, weights=str(tmp_path / "evil.pth")), 5)
    torch.save({"conv1.0.weight": Boom()}, tmp_path / "evil2.pth")
    with pytest.raises(UserError, match="is not a weights file"):
        surgery.build(Net(model=NAME, weights=str(tmp_path / "evil2.pth")), 5)
    assert not (tmp_path / "owned").exists()


def test_weights_that_do_not_fit_name_the_keys(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"does not fit resnet18: \d+ missing \(conv1.weight, .*unexpected \(conv1.0.weight, "
    ):
        surgery.build(Net(model="resnet18", weights=str(tmp_path / "w.pth")), 5)
    narrow = {**state, "conv1.0.weight": torch.zeros(24, 1, 3, 3)}
    save_file(narrow, tmp_path / "n.safetensors")
    with pytest.raises(UserError, match=r"1 of another shape \(conv1.0.weight \(24, 1, 3, 3\) for \(24, 3, 3, 3\)\)"):
        surgery.build(Net(model=NAME, weights=str(tmp_path / "n.safetensors")), 5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", b"garbage"), ("w.pth", b"garbage"), ("w.pth", b""), ("w.safetensors", b""),
        ("w.pth", pickle.dumps([1, 2])),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        surgery.build(Net(model=NAME, weights=str(tmp_path / name)), 5)


def test_weights_that_cannot_be_downloaded_offer_a_file(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"resnet18 cannot be downloaded \(no network\).*https://.*--weights PATH"):
        surgery.build(Net(model="resnet18", weights="default"), 5)


def test_a_model_folder_brings_its_own_transform(tmp_path):
    _, own = write_model(tmp_path / "model", image_size=64)
    for folder in (tmp_path, tmp_path / "model"):  # a run's folder, or its model folder
        _, preprocess, _ = surgery.build(Net(model=NAME, weights=str(folder)), 5)
        assert preprocess == own
        assert (preprocess.crop, preprocess.resize) == (64, 73)
    _, preprocess, _ = surgery.build(Net(model=NAME, weights=str(tmp_path), image_size=128), 5)
    assert (preprocess.crop, preprocess.resize) == (128, 146)
    with pytest.raises(UserError, match=f"--model {NAME}"):
        surgery.build(Net(model="resnet18", weights=str(tmp_path)), 5)


def test_a_damaged_model_folder_is_refused(tmp_path):
    write_model(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        surgery.build(Net(model=NAME, weights=str(tmp_path)), 5)


def test_old_densenet_keys_are_brought_up_to_date(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for k, v in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "d.pth")
    model, _, _ = surgery.build(Net(model="densenet121", weights=str(tmp_path / "d.pth")), 5)
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(model.state_dict()[key], state[key])
