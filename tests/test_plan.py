"""The plan says what is true of the run, where BatchNorm is trained too."""

from functools import partial

import pytest

from finetune import data, plan
from finetune.recipe import Training

GIB = 2**30


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
