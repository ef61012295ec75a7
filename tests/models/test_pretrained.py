"""A torchvision model by its name, as it was pretrained, wherever a command takes a run."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import finetune
from finetune.errors import UserError
from finetune.models import pretrained

NAME = "shufflenet_v2_x0_5"
AUXILIARY = ("inception_v3", "googlenet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of torchvision's key names, with a last layer; the weights are random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pretrained") / "weights.safetensors"
    save_file(torchvision.models.get_model(NAME, weights=None).state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for name in ("ants", "n02206856"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for k in range(2):
            Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "photos"


def test_predictions_are_those_of_torchvisions_own_model_and_transform(call, weights, photos):
    code, out, err = call("predict", NAME, photos, "--weights", weights, "--json", "--precision", "no")
    assert code == 0, err
    kind = torchvision.models.get_model_weights(NAME).DEFAULT
    model = torchvision.models.get_model(NAME, weights=None).eval()
    model.load_state_dict(finetune.models.weights.read(NAME, str(weights))[0])
    lines = list(map(json.loads, out.splitlines()))
    assert len(lines) == 4
    for line in lines:
        with torch.inference_mode():
            image = kind.transforms()(Image.open(line["path"]))[None]
            probabilities = model(image).softmax(1)[0]
        assert line["class"] == kind.meta["categories"][probabilities.argmax()]
        # PIL and tensors round the resized pixels differently.
        assert line["probability"] == pytest.approx(probabilities.max().item(), rel=0.02)


def test_evaluate_takes_the_plural_and_the_wordnet_id_of_a_class(call, weights, photos, tmp_path):
    flags = ("--weights", weights, "--data", photos, "--output", tmp_path / "scores")
    code, out, err = call("evaluate", NAME, *flags)
    assert code == 0, err
    assert "4 images" in out
    found = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    counts = {row["name"]: row["images"] for row in found["classes"] if row["images"]}
    assert counts == {"ant": 2, "bee": 2}
    assert len(found["classes"]) == len(found["confusion"]) < 20, "of the classes that occur"
    assert {row["true"] for row in found["errors"]} <= {"ant", "bee"}


def test_evaluate_names_folders_that_are_no_class_of_imagenet(call, weights, photos):
    (photos / "ants").rename(photos / "my cat Tom")
    code, _, err = call("evaluate", NAME, "--weights", weights, "--data", photos)
    assert code == 2
    assert "the model does not know my cat Tom" in err


def test_the_exported_state_dict_loads_into_torchvisions_untouched_model(call, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("export", NAME, "--weights", weights, "--format", "state-dict")
    assert code == 0, err
    assert f"{NAME}.pth" in out
    model = torchvision.models.get_model(NAME, weights=None)
    model.load_state_dict(torch.load(tmp_path / f"{NAME}.pth", weights_only=True), strict=True)
    assert len(json.loads((tmp_path / f"{NAME}.pth.json").read_text())["classes"]) == 1000


def test_a_folder_of_a_models_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    with pytest.raises(UserError, match=r"resnet18 is no run: it holds no model/model\.json"):
        pretrained.open_model("resnet18")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("resnet5", "default", "resnet5 is neither a run's folder nor a torchvision model.*Did you mean resnet50"),
        ("runs/none", "default", "runs/none is no run: it does not exist"),
        ("runs/none", "w.pth", "--weights w.pth: only a torchvision model"),
        ("resnet18", "none", "--weights none: resnet18 knows ImageNet's classes from"),
    ],
)
def test_a_name_or_weights_that_cannot_be_is_told(name, source, message):
    with pytest.raises(UserError, match=message):
        pretrained.open_model(name, source)


def test_weights_without_a_last_layer_are_for_training(tmp_path):
    state = torchvision.models.get_model(NAME, weights=None).state_dict()
    path = tmp_path / "headless.safetensors"
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, path)
    with pytest.raises(UserError, match=rf"lacks the last layer of {NAME} \(fc\).*python train.py --model {NAME}"):
        pretrained.open_model(NAME, str(path))


def test_every_model_has_imagenets_thousand_classes():
    names = torchvision.models.list_models(torchvision.models)
    assert len(names) == 80
    for name in names:
        assert torchvision.models.get_model_weights(name).DEFAULT.meta["categories"] == pretrained.classes()
    ids = pretrained.IDS.read_text().split()
    assert len(set(ids)) == len(set(pretrained.classes())) == 1000
    assert ids == sorted(ids), "ImageNet numbers its classes in the order of their ids"
    known = {"n01440764": "tench", "n02219486": "ant", "n02124075": "Egyptian cat", "n15075141": "toilet tissue"}
    assert pretrained.imagenet_names(list(known)) == list(known.values())
    assert pretrained.imagenet_names(["Egyptian_Cats", "ANT", "toaster oven"]) == [
        "Egyptian cat",
        "ant",
        "toaster oven",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AUXILIARY, "squeezenet1_1", "vit_b_32", "mnasnet0_5"])
def test_each_kind_of_architecture_keeps_its_own_layers(name):
    torch.manual_seed(0)
    kind = torchvision.models.get_model_weights(name).DEFAULT
    options = {"init_weights": False, "transform_input": True, "aux_logits": True} if name in AUXILIARY else {}
    plain = torchvision.models.get_model(name, weights=None, **options).eval()
    opened = pretrained.from_state(name, plain.state_dict())
    images = torch.rand(1, 3, kind.transforms().crop_size[0], kind.transforms().crop_size[0])
    with torch.inference_mode():
        assert torch.equal(opened(images), plain(images))
