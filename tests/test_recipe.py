"""Recipes, their settings and the command line."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
from conftest import ROOT

from finetune import recipes
from finetune.checks import resolve
from finetune.errors import UserError
from finetune.recipe import Depths, Images, Net, Rate, Recipe, Run, Training


def test_every_recipe_answers_for_every_depth():
    assert {"feature_extractor", "finetune"} <= set(recipes.NAMES)
    for name in recipes.NAMES:
        module = recipes.load(name)
        assert module.SETTINGS.recipe == name
        for depths in (4, 14):
            answers = recipes.rates(module.SETTINGS, depths)
            assert all(answer is None or isinstance(answer, Rate) for answer in answers)
            assert answers[-1] == Rate(1.0), "the head is trained from the start, at the full rate"


def test_named_sets_lie_in_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(Images().data_root) == "~/.cache/finetune/data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(Images().data_root) == "/elsewhere/finetune/data"


def test_feature_extractor_trains_the_head_alone_and_finetune_everything():
    assert recipes.rates(recipes.load("feature_extractor").SETTINGS, 5) == [None] * 4 + [Rate(1.0)]
    assert recipes.rates(recipes.load("finetune").SETTINGS, 5) == [Rate(1.0)] * 5


def test_a_flag_overrides_the_recipes_default():
    plain = recipes.from_command_line(["--recipe", "finetune"])
    changed = recipes.from_command_line(["--recipe=finetune", "--lr", "0.5", "--batch-size", "7"])
    assert changed == replace(plain, training=replace(plain.training, lr=0.5, batch_size=7))


def test_auto_picks_the_starter_backbone_or_resnet18():
    assert resolve(Recipe()).net == Net("shufflenet_v2_x0_5", "starter", image_size=64)
    assert resolve(Recipe(images=Images(data="photos"))).net == Net("resnet18", "default")
    assert resolve(Recipe(net=Net(model="resnet50"))).net.weights == "default"
    assert resolve(Recipe(net=Net(weights="none"))).net == Net("shufflenet_v2_x0_5", "none", image_size=64)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"epochs": 0}, "--epochs 0"),
        ("training", {"batch_size": -1}, "--batch-size -1"),
        ("training", {"lr": float("nan")}, "--lr nan"),
        ("training", {"warmup": 1.5}, "--warmup 1.5"),
        ("training", {"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ("images", {"val_fraction": 0.0}, "--val-fraction 0.0"),
        ("images", {"crop_scale": 0.0}, "--crop-scale 0.0"),
        ("net", {"image_size": 2}, "--image-size 2"),
        ("run", {"seed": -1}, "--seed -1"),
    ],
)
def test_a_value_out_of_bounds_is_named(section, values, message):
    recipe = Recipe()
    with pytest.raises(UserError, match=message):
        resolve(replace(recipe, **{section: replace(getattr(recipe, section), **values)}))


def test_wrong_recipe_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown recipe 'fine_tune'. Did you mean finetune"):
        recipes.from_command_line(["--recipe", "fine_tune"])


def test_help_lists_every_flag_with_its_meaning_and_loads_no_torch():
    code = "import sys, atexit, train; atexit.register(lambda: print('torch' in sys.modules)); train.main(['--help'])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("False\n")
    flags = [field.name for section in (Net, Images, Training, Depths, Run) for field in fields(section)]
    assert len(flags) > 50
    for flag in flags:
        assert f"--{flag.replace('_', '-')}" in shown.stdout or f"--no-{flag.replace('_', '-')}" in shown.stdout, flag


def test_wrong_flag_gets_the_nearest_one_and_exit_code_2():
    shown = subprocess.run(
        [sys.executable, "train.py", "--epoch", "3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "--epochs" in shown.stderr
    assert "Traceback" not in shown.stderr
