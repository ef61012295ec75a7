"""The plan says what is cached, and why the rest is not."""


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
