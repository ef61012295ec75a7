"""Settings without effect: the plan names them, and no others."""

import pytest

from finetune import make_recipe
from finetune.reporting import unused

NEEDS_NO_STEPS = "a solved head needs no steps (--solver sgd trains it by steps)"


@pytest.mark.parametrize(
    ("recipe", "settings", "solved", "steps", "words"),
    [
        ("feature_extractor", {}, True, False, ""),
        ("feature_extractor", {"lr": 0.1, "epochs": 3, "l2": 0.1}, True, False, f"--epochs, --lr: {NEEDS_NO_STEPS}"),
        ("feature_extractor", {"lr": 0.1, "l2": 0.1}, False, True, "--l2: the head is not solved"),
        ("finetune", {"interpolate": True}, False, True, "--interpolate: the head is not solved"),
        ("finetune", {"interpolate": True}, True, True, ""),
        (
            *("feature_extractor", {"augment": "strong", "erase": 0.5, "batch_size": 9}, True, False),
            f"--batch-size: {NEEDS_NO_STEPS}; "
            "--erase, --augment: a solved head gets each image as it is evaluated, and flipped",
        ),
        ("feature_extractor", {"augment": "none"}, True, False, ""),
        ("finetune", {"lr": 0.1, "epochs": 3, "decay": 0.5}, True, True, ""),
        ("finetune", {"layers": 3}, True, True, "--layers: finetune trains the same without it"),
        ("last_layers", {"layers": 3}, True, True, ""),
        ("last_layers", {"layers": 3, "train_depths": ("stage 3",)}, True, True, ""),
        ("finetune", {"momentum": 0.5}, True, True, "--momentum: adamw has none"),
        ("finetune", {"optimizer": "sgd", "momentum": 0.5, "schedule": "step", "step_epochs": 2}, True, True, ""),
        ("finetune", {"dropout": 0.1}, True, True, "--dropout: the head is linear (--head mlp has hidden layers)"),
        ("finetune", {"dropout": 0.1, "head": "mlp"}, False, True, ""),
        (
            "finetune",
            {"augment": "none", "hflip": False, "vflip": True},
            *(True, True, "--no-hflip, --vflip: --augment none"),
        ),
        (
            "finetune",
            {"tracker": "none", "project": "mine", "first_layer": "luma"},
            *(True, True, "--first-layer: the images are not grey (--in-channels 1); --project: --tracker none"),
        ),
    ],
)
def test_a_setting_is_named_where_it_changes_nothing(recipe, settings, solved, steps, words):
    assert unused.describe(make_recipe(recipe, **settings), 6, solved, steps) == words


def test_the_plan_names_them(train, capsys):
    assert train("--plan", "--weights", "starter", "--solver", "lbfgs", "--lr", "0.1")[0] == 0
    assert f"--lr: {NEEDS_NO_STEPS}" in " ".join(capsys.readouterr().out.split())
