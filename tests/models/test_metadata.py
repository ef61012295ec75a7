"""model.json is read as it was written, and a damaged or hostile one is refused before anything is built."""

import json
from dataclasses import asdict, replace

import pytest

from finetune.config.settings import Net
from finetune.errors import UserError
from finetune.models import metadata
from finetune.models.architectures import Preprocess

NET = Net(model="resnet18", weights="/home/me/w.pth", head="mlp", hidden=(8, 6), pool_size=2, image_size=32)
PREPROCESS = Preprocess(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
RECORD = {"epoch": 2, "val_accuracy": 0.5, "val_loss": 0.7, "train_loss": 0.9}


@pytest.fixture
def folder(tmp_path):
    metadata.write(tmp_path, metadata.of_run(NET, ["bee", "ant"], PREPROCESS, RECORD))
    return tmp_path


def edit(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | changes))


def test_what_was_written_is_read(folder):
    known = metadata.read(folder)
    assert (known.net, known.classes, known.preprocess) == (NET, ["bee", "ant"], PREPROCESS)
    assert known.score == {"epoch": 2, "val_accuracy": 0.5, "val_loss": 0.7}


def test_a_fit_is_read_as_it_was_written_and_a_file_of_the_first_format_means_crop(tmp_path):
    padded = replace(PREPROCESS, fit="pad")
    metadata.write(tmp_path, metadata.of_run(NET, ["bee", "ant"], padded, RECORD))
    assert metadata.read(tmp_path).preprocess == padded
    edit(tmp_path, format=1, preprocess={name: value for name, value in asdict(padded).items() if name != "fit"})
    assert metadata.read(tmp_path).preprocess == PREPROCESS


TRANSFORM = {"resize": 32, "crop": 32, "interpolation": "bilinear", "mean": [0] * 3, "std": [1] * 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "written by a newer version (format 3"),
        ({"format": "1"}, "no format number"),
        ({"classes": ["a"] * 3}, "classes must be different names"),
        ({"classes": ["a"]}, "two or more"),
        ({"classes": [1, 2]}, "classes [1, 2] must be a list, each text"),
        ({"score": [0.5]}, "score [0.5] must be an object, each entry a number"),
        ({"model": "../../etc/passwd"}, "is none of torchvision's"),
        ({"model": ["resnet18"]}, "model"),
        ({"head": "attention"}, "head"),
        ({"first_layer": "red"}, "first_layer"),
        ({"hidden": [8, 0]}, "hidden"),
        ({"hidden": 8}, "damaged"),
        ({"hidden": "86"}, "hidden"),
        ({"in_channels": True}, "in_channels"),
        ({"pool_size": 10**6}, "pool_size"),
        ({"in_channels": 10**9}, "in_channels 1000000000 must be"),
        ({"in_channels": 4}, "mean must be 4 numbers"),
        ({"dropout": "much"}, "dropout"),
        ({"dropout": 1}, "dropout"),
        ({"head_batchnorm": 1}, "head_batchnorm"),
        ({"preprocess": TRANSFORM | {"crop": 10**9}}, "preprocess: crop 1000000000 must be"),
        ({"preprocess": TRANSFORM | {"mean": [0]}}, "mean and std must be of the same length"),
        ({"preprocess": TRANSFORM | {"std": [1, 0, 1]}}, "preprocess: std (1, 0, 1) must be"),
        ({"preprocess": TRANSFORM | {"std": [1, float("nan"), 1]}}, "std"),
        ({"preprocess": TRANSFORM | {"interpolation": "lanczos"}}, "interpolation 'lanczos' must be one of nearest"),
        ({"preprocess": TRANSFORM | {"fit": "stretch"}}, "fit 'stretch' must be one of crop, squash, pad"),
        ({"preprocess": TRANSFORM | {"fit": ["pad"]}}, "fit ('pad',) must be one of"),
        ({"preprocess": {"crop": 32}}, "damaged"),
        ({"preprocess": 3}, "damaged"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError) as caught:
        metadata.read(folder)
    assert message in str(caught.value)
    assert "model.json" in str(caught.value)


def test_a_missing_value_is_named(folder):
    content = json.loads((folder / "model.json").read_text())
    assert len(content) >= 12
    for name in content.keys() - {"score"}:
        left = {key: value for key, value in content.items() if key != name}
        (folder / "model.json").write_text(json.dumps(left))
        with pytest.raises(UserError, match=r"model\.json is damaged"):
            metadata.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"[" * 10**5, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b" " * (16 * 2**20 + 1), "is larger than 16 MiB"),
    ],
    ids=["cut", "not text", "nested", "a list", "large"],
)
def test_a_file_that_is_no_metadata_is_refused(folder, content, message):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        metadata.read(folder)
