"""Every command of train.py in the documents runs. What needs a download is checked up to the plan."""

import re
import shlex
from pathlib import Path

import pytest
from documented import COMMANDS, INLINE, blocks, of_kind, run
from support import ROOT, reset_accelerate

from finetune import recipes
from finetune.runtime.entry import exit_code


def flags(command: str) -> list[str]:
    return shlex.split(command)[shlex.split(command).index("train.py") + 1 :]


def understood(command: str):
    """The recipe with the settings that a command gives; None where it only asks for help."""
    if "--help" in flags(command):
        with pytest.raises(SystemExit, match=r"^0$"):
            recipes.from_command_line(flags(command))
        return None
    return recipes.from_command_line(flags(command))


def test_every_training_command_is_understood(checkout, capsys):
    lines = [*of_kind("training"), *of_kind("stop and resume"), *INLINE]
    for line in lines:
        recipe = understood(line)
        assert "--help" in line or recipe.recipe in recipes.NAMES, line
    assert len(INLINE) >= len(recipes.NAMES)
    assert len(lines) >= 42


def test_the_plan_in_the_guide_is_what_its_command_prints(capsys):
    import train as script

    (table,) = blocks(ROOT / "docs" / "recipes.md", "text")
    reset_accelerate()
    assert script.main(["--recipe", "gradual_unfreeze", "--plan"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed[1 : 1 + len(table.splitlines())] == table.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("training"))
def test_every_training_command_reaches_its_plan(command, checkout, capfd):
    """Without a network there are no weights to download, so random ones stand in for them."""
    import train as script

    recipe = understood(command)
    words = shlex.split(command)
    if recipe and not recipe.run.preview:
        words.append("--plan")
    if recipe and recipe.images.data != "starter":
        if not Path(recipe.images.data).exists():
            pytest.skip("needs a download")
        words += [] if "--weights" in words else ["--weights", "none"]
    if words[0] != "python":
        done = run(shlex.join(words), checkout)
        assert done.returncode == 0, done.stderr
        return
    reset_accelerate()
    try:
        code = exit_code(script.main, words[2:])
    except SystemExit as end:
        code = end.code
    assert code == 0, capfd.readouterr().err


def test_the_main_command_runs_as_written_and_transfer_helps(checkout):
    done = run(COMMANDS[0].partition("&& ")[2], checkout)
    assert done.returncode == 0, done.stderr
    best = float(re.search(r"Validation accuracy (\d\.\d+)", done.stdout).group(1))
    assert best >= 0.9
    assert "\r" not in done.stdout, "no progress bar in a log file"
    assert len(done.stdout.splitlines()) < 50
    (folder,) = (checkout / "runs").iterdir()
    assert folder.name.startswith("feature_extractor-")


@pytest.mark.slow
def test_the_same_network_from_scratch_learns_little_in_the_same_time(checkout):
    (scratch,) = [line for line in INLINE if "--weights none" in line]
    done = run(f"{scratch} --tracker none --output scratch", checkout)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"Best validation accuracy (\d\.\d+)", done.stdout).group(1)) <= 0.6


@pytest.mark.slow
def test_the_commands_that_stop_and_resume_run(checkout):
    first, again = of_kind("stop and resume")
    assert again == f"{first} --resume"
    tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 1 --tracker none"
    assert run(f"{first} {tiny}", checkout).returncode == 0
    done = run(f"{again} {tiny}", checkout)
    assert "runs/mine/checkpoints/" in done.stdout
    assert done.returncode == 0, done.stderr
