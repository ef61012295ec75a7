"""The plan: arithmetic, BatchNorm's statistics, the table as JSON."""

import json

import pytest

from finetune import make_plan, make_recipe
from finetune.reporting import plan

RESNET18 = 2 * 1.814  # GFLOP: twice the multiplications that torchvision states, of an image of 224 pixels


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch-size", "8", "--accumulate", "2"), "over 2 to 4 images"),
        (("--batch-size", "7", "--accumulate", "3"), "over 2 to 3 images"),
        (("--batch-size", "8"), None),
        (("--batch-size", "8", "--accumulate", "2", "--recipe", "feature_extractor"), None),
    ],
)
def test_the_plan_says_over_which_images_batchnorm_takes_its_statistics(train, capsys, flags, words):
    assert train("--plan", "--recipe", "finetune", *flags)[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    if words:
        assert f"statistics of each micro-batch, {words}: the result differs from" in shown
    else:
        assert "statistics of each micro-batch" not in shown


@pytest.mark.parametrize(
    ("recipe", "flags", "expected", "words"),
    [
        ("finetune", {}, 4 * (3 * 21 + 9) * RESNET18, "about"),
        # The features of one view are computed once; what is then trained is too small to be seen.
        ("feature_extractor", {"views": 1}, (21 + 9) * RESNET18, "about"),
        # Head alone, then everything.
        ("linear_then_finetune", {"head_epochs": 2, "views": 1}, (30 + 2 * (3 * 21 + 9)) * RESNET18, "about"),
        ("feature_extractor", {"cache_gb": 0}, 4 * (3 * 21 + 9) * RESNET18, "at most"),
    ],
)
def test_the_plan_states_the_arithmetic_of_a_run(image_folder, tmp_path, recipe, flags, expected, words):
    given = {"cache_gb": 1, "model": "resnet18", "weights": "none", "epochs": 4, **flags}
    made = make_plan(make_recipe(recipe, data=str(image_folder), cache_dir=tmp_path, **given))
    stated = made.facts["arithmetic"].split()
    assert " ".join(stated[: len(words.split())]) == words
    value, unit = stated[len(words.split()) :][:2]
    assert float(value) * {"GFLOP": 1, "TFLOP": 1e3}[unit] == pytest.approx(expected, rel=0.01)
    assert made.facts["arithmetic"].endswith("; 3.63 GFLOP per forward pass of an image")


@pytest.mark.parametrize(
    ("flags", "said"), [((), True), (("--lr", "1e-3"), False), (("--l2", "0.01"), False), (("--solver", "sgd"), False)]
)
def test_the_plan_says_where_the_rate_follows_the_head(train, capsys, flags, said):
    solver = () if "--solver" in flags else ("--solver", "auto")
    assert train("--plan", "--recipe", "finetune", "--weights", "starter", *solver, *flags)[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("up to 5 times the rates above if the solved head's held-out loss is above 0.33" in shown) == said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--recipe", "finetune", "--image-size", "96"),
            "random crops 70 % of an image's area or more (--crop-scale auto)",
        ),
        (
            ("--recipe", "finetune", "--image-size", "32"),
            "random crops 35 % of an image's area or more (--crop-scale auto)",
        ),
        (("--recipe", "finetune", "--crop-scale", "0.2"), "random crops 20 % of an image's area or more"),
        (("--recipe", "finetune", "--augment", "none"), None),
        (("--recipe", "feature_extractor", "--solver", "auto", "--weights", "starter"), None),
    ],
)
def test_the_plan_says_how_small_random_crops_are(train, capsys, flags, said):
    assert train("--plan", *flags)[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown if said else "random crops" not in shown


def test_the_plan_as_json_holds_every_depth_and_the_total_of_its_memory(train, capsys):
    flags = ("--recipe", "gradual_unfreeze", "--unfreeze-every", "1", "--epochs", "3")
    code, output = train("--plan", "--json", *flags)
    found = json.loads(capsys.readouterr().out)
    assert (code, output.exists()) == (0, False)
    assert [row["name"] for row in found["rows"]] == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"]
    assert [row["start"] for row in found["rows"]] == [5, 4, 3, 2, 1, 0]
    sizes = [row["parameters"] for row in found["rows"]]
    assert found["facts"]["parameters"] == f"{sum(sizes[3:]):,} trained of {sum(sizes):,}", "three epochs start three"
    assert found["total_memory"] == sum(found["memory"].values()) > 0
    assert found["facts"]["classes"] == "3: blue, green, red"


@pytest.mark.parametrize(
    ("start", "solved", "epochs", "when", "trained"),
    [
        (0, False, 3, "from the start", True),
        (2, False, 3, "from epoch 3", True),
        (3, False, 3, "from epoch 4, after the last (3)", False),
        (0, True, 3, "solved, then from the start", True),
        (0, True, 0, "solved", True),
        (0, False, 0, "frozen", False),
        (None, False, 3, "frozen", False),
    ],
)
def test_a_depth_that_starts_after_the_last_epoch_is_not_trained(start, solved, epochs, when, trained):
    row = plan.Row("stem", "conv1", 9, start, solved, 0.1, 0.0, "")
    assert (row.when(epochs), row.is_trained(epochs)) == (when, trained)


@pytest.mark.parametrize(
    ("count", "words"), [(2_000_000_000, "2 GFLOP"), (3_456_000_000_000, "3.46 TFLOP"), (10**15, "1 PFLOP")]
)
def test_operations_have_a_unit_that_fits(count, words):
    assert plan.in_flops(count) == words
