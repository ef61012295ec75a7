"""The plan says what is cached, and why the rest is not."""

import re

import pytest


@pytest.mark.slow
def test_the_plan_says_what_is_cached(train, capsys):
    def printed(*flags):
        assert train("--plan", *flags)[0] == 0
        return " ".join(capsys.readouterr().out.split())

    assert "output of mean for 9 val, 21 train in 2 views" in printed("--views", "2")
    assert "(not of train: each epoch draws fresh augmentations)" in printed("--views", "0")
    assert "(not of train: images are mixed anew in each epoch)" in printed("--cutmix", "1")
    assert "nothing (all depths are trained)" in printed("--recipe", "finetune")
    assert "nothing (--cache-gb 0)" in printed("--cache-gb", "0")
    shown = printed("--recipe", "gradual_unfreeze", "--epochs", "4")
    assert "epochs 1 to 2: output of mean" in shown
    assert "epochs 3 to 4: output of stage4." in shown


def test_the_plan_counts_the_passes_that_solve_the_head(train, capsys):
    """Without a cache the head's features take a pass over the images for each view of them."""

    def printed(*flags):
        solved = ("--recipe", "feature_extractor", "--weights", "starter", "--solver", "lbfgs", "--cache-gb", "0")
        assert train("--plan", *solved, *flags)[0] == 0
        return " ".join(capsys.readouterr().out.split())

    def gflop(text, what):
        return float(re.search(rf"([0-9.e-]+) GFLOP {what}", text)[1])

    alone, mirrored = printed("--no-hflip"), printed()
    assert "train: decoded once only" in alone
    assert "train: decoded twice only" in mirrored
    forward = gflop(alone, "per forward pass")
    assert gflop(alone, "in all") == pytest.approx((21 + 9) * forward, rel=0.05)
    assert gflop(mirrored, "in all") == pytest.approx((2 * 21 + 9) * forward, rel=0.05)
