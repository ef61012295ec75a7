"""Recipes: what each trains, and the ways to make one."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune import recipes
from finetune.config.bounds import resolve
from finetune.config.settings import SECTIONS, Rate
from finetune.errors import UserError

HEAD = [None] * 4 + [Rate(1.0)]


def rates(name: str, depths: int = 5, **settings) -> list[Rate | None]:
    return recipes.rates(recipes.from_settings(name, {"weights": "none", **settings}), depths)


def test_a_recipe_that_trains_nothing_is_a_mistake(monkeypatch):
    monkeypatch.setattr(recipes.load("finetune"), "rate", lambda *_: None)
    with pytest.raises(UserError, match="finetune trains no depth"):
        rates("finetune")


# ---- --train-depths --------------------------------------------------------------------------------------------------
def test_depths_that_are_not_named_are_frozen_and_the_others_keep_their_rates():
    whole = rates("finetune")
    for given, kept in (
        (["stem", "3", "head"], {0, 3, 4}),
        (["stage 2"], {2}),
        (("head",), {4}),
        (["stem", "1", "2", "3", "head"], set(range(5))),
    ):
        expected = [rate if depth in kept else None for depth, rate in enumerate(whole)]
        assert rates("finetune", train_depths=given) == expected


def test_the_earliest_of_the_named_depths_starts_at_once():
    found = rates("gradual_unfreeze", train_depths=["1", "2"], unfreeze_every=2, decay=0.5)
    assert found == [None, Rate(0.125, 2), Rate(0.25, 0), None, None]
    assert rates("linear_then_finetune", train_depths=["2"], body_scale=0.1) == [None, None, Rate(0.1), None, None]
    assert rates("linear_then_finetune", train_depths=["2", "head"], head_epochs=3)[2].start == 3


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("finetune", ["4", "head"], "--train-depths 4 head: shufflenet_v2_x0_5 has no depth 4. finetune trains stem, "),
        ("finetune", [], "--train-depths: name at least one depth. finetune trains stem, 1, 2, 3, head."),
        ("last_layers", ["1", "head"], "last_layers keeps 1 frozen. last_layers trains 3, head."),
        ("feature_extractor", ["stem"], "feature_extractor keeps stem frozen. feature_extractor trains head."),
    ],
)
def test_a_name_of_no_depth_that_the_recipe_trains_is_a_mistake_that_lists_them(recipe, given, message):
    with pytest.raises(UserError) as caught:
        rates(recipe, train_depths=given)
    assert message in str(caught.value)


# ---- each recipe -----------------------------------------------------------------------------------------------------
def test_every_recipe_answers_for_every_depth():
    assert {"feature_extractor", "finetune"} <= set(recipes.NAMES)
    for name in recipes.NAMES:
        module = recipes.load(name)
        assert module.SETTINGS.recipe == name
        assert resolve(module.SETTINGS).recipe == name
        for depths in (4, 14):
            answers = recipes.rates(module.SETTINGS, depths)
            assert all(answer is None or isinstance(answer, Rate) for answer in answers)
            assert answers[-1] == Rate(1.0), "the head is trained from the start, at the full rate"


def test_every_description_has_a_title_a_command_and_a_source_or_a_measurement():
    for name in recipes.NAMES:
        title, commands, *rest = recipes.load(name).__doc__.split("\n\n")
        assert len(title) <= 100, name
        assert title.endswith("."), name
        assert commands.startswith("    "), "the help keeps the lines of a block that is indented"
        assert f"--recipe {name}" in commands, name
        assert "Source: " in "".join(rest) or "Measured" in "".join(rest), name
    assert len(recipes.NAMES) >= 10


@pytest.mark.parametrize("name", ["feature_extractor", "grayscale", "vgg_cifar10"])
def test_the_head_alone_is_trained(name):
    assert rates(name) == HEAD


def test_everything_is_trained_at_one_rate_from_random_weights():
    assert rates("scratch") == [Rate(1.0)] * 5


def test_finetuning_has_lower_rates_towards_the_stem():
    scales = [rate.lr_scale for rate in rates("finetune", decay=0.5)]
    assert scales == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert {rate.start for rate in rates("finetune")} == {0}


def test_the_last_layers_are_trained():
    assert rates("last_layers", layers=1) == HEAD
    assert rates("last_layers", layers=3) == [None, None, Rate(1.0), Rate(1.0), Rate(1.0)]
    assert rates("last_layers", layers=5) == [Rate(1.0)] * 5
    with pytest.raises(UserError, match="--layers 6, but shufflenet_v2_x0_5 has 5 depths"):
        rates("last_layers", layers=6)


def test_rates_fall_towards_the_stem_down_to_the_floor():
    scales = [rate.lr_scale for rate in rates("layerwise_lr", decay=0.5, floor=0.2)]
    assert scales == [0.2, 0.2, 0.25, 0.5, 1.0]
    assert {rate.start for rate in rates("layerwise_lr")} == {0}


def test_depths_start_one_after_the_other_from_the_head():
    found = rates("gradual_unfreeze", decay=0.5, unfreeze_every=3)
    assert found == [Rate(0.0625, 12), Rate(0.125, 9), Rate(0.25, 6), Rate(0.5, 3), Rate(1.0, 0)]


@pytest.mark.parametrize("name", ["linear_then_finetune", "concat_pool"])
def test_the_body_starts_after_the_head_at_a_lower_rate(name):
    assert rates(name, head_epochs=2, body_scale=0.3) == [Rate(0.3, 2)] * 4 + [Rate(1.0)]


# ---- ways to a recipe ------------------------------------------------------------------------------------------------
def test_a_flag_overrides_the_recipes_default():
    plain = recipes.from_command_line(["--recipe", "finetune"])
    changed = recipes.from_command_line(["--recipe=finetune", "--lr", "0.5", "--batch-size", "7"])
    assert changed == replace(plain, training=replace(plain.training, lr=0.5, batch_size=7))


def test_settings_by_name_are_the_flags():
    flags = ["--recipe", "grayscale", "--hidden", "8", "4", "--cache-dir", "c", "--lr", "0.5", "--weights", "none"]
    settings = {"hidden": [8, 4], "cache_dir": "c", "lr": 0.5, "weights": "none"}
    assert recipes.from_settings("grayscale", settings) == recipes.from_command_line(flags)


def test_a_path_is_taken_where_text_is_and_the_other_way_round():
    recipe = recipes.from_settings("finetune", {"data": Path("photos"), "output": "runs/x"})
    assert (recipe.images.data, recipe.run.output) == ("photos", Path("runs/x"))


def test_an_unknown_setting_gets_the_nearest_names_and_a_wrong_value_its_bounds():
    with pytest.raises(UserError, match=r"unknown setting 'batchsize'. Did you mean .*batch_size"):
        recipes.from_settings("finetune", {"batchsize": 3})
    with pytest.raises(UserError, match="--epochs 0"):
        recipes.from_settings("finetune", {"epochs": 0})
    with pytest.raises(UserError, match="--schedule linear: must be one of"):
        recipes.from_settings("finetune", {"schedule": "linear"})


@pytest.mark.parametrize("name", recipes.NAMES)
def test_a_recipe_comes_back_from_a_runs_config(name):
    recipe = recipes.from_settings(name, {"cache_dir": "c", "seed": 3})
    config = {key: value for section in SECTIONS for key, value in asdict(getattr(recipe, section)).items()}
    config |= {"recipe": name, "classes": ["a", "b"]}
    assert recipes.from_config(json.loads(json.dumps(config, default=str))) == recipe


def test_a_config_of_an_unknown_recipe_is_refused():
    for config in ({}, {"recipe": "alchemy"}, {"recipe": None}):
        with pytest.raises(UserError, match="which this version does not have"):
            recipes.from_config(config)


def test_a_wrong_recipe_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown recipe 'fine_tune'. Did you mean finetune"):
        recipes.from_command_line(["--recipe", "fine_tune"])
