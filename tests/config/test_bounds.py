"""Values out of bounds are refused by name, and `auto` is filled in."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.config import command_line
from finetune.config.bounds import period, resolve
from finetune.config.schema import convert, wrong_values
from finetune.config.settings import Images, Net, Recipe, Run, Training
from finetune.errors import UserError


def test_auto_picks_the_starter_backbone_or_resnet18():
    assert resolve(Recipe()).net == Net("shufflenet_v2_x0_5", "starter", image_size=64)
    assert resolve(Recipe(images=Images(data="photos"))).net == Net("resnet18", "default")
    assert resolve(Recipe(net=Net(model="resnet50"))).net.weights == "default"
    assert resolve(Recipe(net=Net(weights="none"))).net == Net("shufflenet_v2_x0_5", "none", image_size=64)
    assert resolve(Recipe(net=Net(image_size=96))).net.image_size == 96


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"epochs": 0}, "--epochs 0: must be a whole number at least 1 and at most 1000000."),
        ("training", {"epochs": 1.5}, "--epochs 1.5: must be a whole number at least 1 and"),
        ("training", {"epochs": "3"}, "--epochs 3: must be a whole number"),
        ("training", {"batch_size": -1}, "--batch-size -1"),
        ("training", {"lr": 0.0}, "--lr 0.0: must be a number above 0 and at most 1000 or auto."),
        ("training", {"lr": float("nan")}, "--lr nan"),
        ("training", {"lr": float("inf")}, "--lr inf"),
        ("training", {"warmup": 1.5}, "--warmup 1.5"),
        ("training", {"label_smoothing": 1.0}, "--label-smoothing 1.0: must be a number at least 0 and below 1."),
        ("training", {"optimizer": "lion"}, "--optimizer lion: must be one of sgd, adam, adamw."),
        ("training", {"class_weights": 1}, "--class-weights 1: must be true or false."),
        ("images", {"val_fraction": 0.0}, "--val-fraction 0.0"),
        ("images", {"crop_scale": 0.0}, "--crop-scale 0.0"),
        ("images", {"workers": -2}, "--workers -2"),
        ("images", {"workers": True}, "--workers True"),
        ("images", {"data": 3}, "--data 3: must be text."),
        ("net", {"image_size": 2}, "--image-size 2: must be a whole number at least 8 and at most 8192 or None."),
        (
            "net",
            {"hidden": (8, 0)},
            "--hidden 8 0: must be a list of at most 16 entries, each a whole number at least 1 and at most 65536.",
        ),
        ("run", {"seed": -1}, "--seed -1"),
        ("run", {"seed": 2**63}, "--seed"),
        ("run", {"output": 3}, "--output 3: must be a path or None."),
        ("run", {"checkpoint_every": "often"}, "--checkpoint-every often: must be a number of steps"),
    ],
)
def test_a_value_out_of_bounds_is_named(section, values, message):
    recipe = Recipe()
    with pytest.raises(UserError) as caught:
        resolve(replace(recipe, **{section: replace(getattr(recipe, section), **values)}))
    assert message in str(caught.value)


def test_what_only_looks_wrong_is_taken():
    for section in (
        Net(hidden=(), image_size=8),
        Training(epochs=np.int64(3), lr=np.float32(0.1), clip_norm=1, step_factor=1),
        Images(workers=0, mixup=1),
        Run(cache_gb=0, output=Path("x"), seed=2**63 - 1),
    ):
        assert wrong_values(section) == []


def test_augmentation_of_colours_needs_one_or_three_channels():
    arrays = Images(data="arrays.npz", augment="strong")
    with pytest.raises(UserError, match="--augment strong needs 1 or 3 channels, not 5"):
        resolve(Recipe(net=Net(in_channels=5), images=arrays))
    assert resolve(Recipe(net=Net(in_channels=1), images=arrays)).images == arrays


def test_weights_must_exist_unless_a_checkpoint_replaces_them(tmp_path):
    net = Net(weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"w\.pth: no such file"):
        resolve(Recipe(net=net))
    assert resolve(Recipe(net=net, run=Run(resume=True))).net.weights == net.weights
    (tmp_path / "w.pth").touch()
    assert resolve(Recipe(net=net)).net.weights == net.weights


def test_a_learning_rate_test_has_no_tracker():
    assert resolve(Recipe(run=Run(lr_find=True))).run.tracker == "none"
    assert resolve(Recipe()).run.tracker == "wandb"


def test_a_period_is_in_steps_or_in_minutes():
    never = (sys.maxsize, float("inf"))
    assert period("500") == (500, float("inf"))
    assert period("1.5m") == (sys.maxsize, 90.0)
    assert period("0") == period("0m") == never
    for wrong in ("", "m", "-1", "-1m", "1.5", "10s", "nanm", "infm"):
        with pytest.raises(UserError, match="--checkpoint-every"):
            period(wrong)


def test_a_path_is_converted_after_the_help_was_shown_too():
    for _ in range(2):
        assert convert(Run, "cache_dir", "folder") == Path("folder")
        assert convert(Net, "weights", Path("file.pth")) == "file.pth"
        with pytest.raises(SystemExit):
            command_line.parse(Recipe, "train.py", ["--help"])
