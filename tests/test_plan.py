"""The plan says what is true of the run, where BatchNorm is trained too."""

from functools import partial

import pytest

from finetune import data, make_plan, make_recipe, plan
from finetune.recipe import Training

GIB = 2**30
RESNET18 = 2 * 1.814  # GFLOP: twice the multiplications that torchvision states, of an image of 224 pixels


def advised(count, batch_size, accumulate=1, processes=1, batchnorm=True, activations=10 * GIB, free=5 * GIB):
    need = plan.Memory(weights=0, gradients=0, optimizer=0, activations=activations)
    training = Training(batch_size=batch_size, accumulate=accumulate)
    fewest = partial(data.fewest, count) if batchnorm else None
    return plan.advice(need, free, training, processes, fewest).partition("were free. ")[2]


def test_the_advice_for_memory_is_one_that_batchnorm_can_follow():
    eval_too = "; in evaluation, a smaller --eval-batch-size."
    changed = "(BatchNorm then takes its statistics of fewer images, and the result changes)"
    assert advised(1000, 8, batchnorm=False) == (
        f"Use --accumulate 4 (the result stays the same) or --batch-size 2{eval_too}"
    )
    assert advised(1000, 8) == f"Use --accumulate 4 {changed} or --batch-size 2{eval_too}"
    assert advised(1002, 8) == f"Use --batch-size 2{eval_too}", "the last batch has two images: no parts of it"
    assert advised(1000, 8, processes=2) == "Take a smaller --model or --image-size."
    assert advised(21, 16, processes=2, free=9 * GIB) == f"Use --batch-size 8{eval_too}"
    assert advised(26, 16, processes=2, free=9 * GIB) == f"Use --accumulate 2 {changed} or --batch-size 7{eval_too}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--batch-size", "8", "--accumulate", "2"), "statistics are each part's own, over 2 to 4 images: not what"),
        (("--batch-size", "7", "--accumulate", "3"), "statistics are each part's own, over 2 to 3 images: not what"),
        (("--batch-size", "8"), None),
        (("--batch-size", "8", "--accumulate", "2", "--recipe", "feature_extractor"), None),
    ],
)
def test_the_plan_says_of_what_images_batchnorm_takes_its_statistics(train, capsys, flags, said):
    assert train("--plan", "--recipe", "finetune", *flags)[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    if said:
        assert said in shown
    else:
        assert "statistics are" not in shown


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
def test_the_plan_says_the_arithmetic_of_a_run(image_folder, tmp_path, recipe, flags, expected, words):
    given = {"cache_gb": 1, "model": "resnet18", "weights": "none", "epochs": 4, **flags}
    plan = make_plan(make_recipe(recipe, data=str(image_folder), cache_dir=tmp_path, **given))
    said = plan.facts["arithmetic"].split()
    assert " ".join(said[: len(words.split())]) == words
    value, unit = said[len(words.split()) :][:2]
    assert float(value) * {"GFLOP": 1, "TFLOP": 1e3}[unit] == pytest.approx(expected, rel=0.01)
    assert said[-5:-1] == ["3.63", "GFLOP", "per", "image"]
