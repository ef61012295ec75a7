"""Settings of a resumed run: which may change, which stay as the run began, and what is said about them."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support import ROOT, metrics, no_pictures, write_images

from finetune.models import network
from finetune.runtime import cpu, devices
from finetune.training import resume
from finetune.training.saved_checkpoints import Found


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    no_pictures(monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", "0.5"), "--resume cannot change --lr 0.001 → 0.5"),
        (("--seed", "1", "--batch-size", "3"), "cannot change --batch-size 8 → 3, --seed 0 → 1"),
        (("--output", "nowhere"), "nowhere is no run's folder"),
    ],
)
def test_a_setting_that_may_not_change_is_refused_and_nothing_is_touched(train, capsys, flags, message):
    code, output = train("--epochs", "1", "--lr", "0.001")
    assert code == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    same = () if "--output" in flags else ("--output", str(output))
    same += () if "--lr" in flags else ("--lr", "0.001")
    assert train("--epochs", "1", *same, *flags, "--resume")[0] == 2
    assert message in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}


def test_the_guide_lists_every_setting_that_may_change():
    text = (ROOT / "docs" / "resuming.md").read_text()
    start = text.index("These settings may change")
    listed = set(re.findall(r"`([a-z-]+)`", text[start : text.index("Schedules are functions")]))
    assert listed - {"--minutes"} == {name.replace("_", "-") for name in resume.MAY_CHANGE}


def test_the_epochs_that_minutes_has_chosen_may_not_change(train, capsys):
    code, output = train("--epochs", "1", "--minutes", "30")
    assert code == 0
    assert train("--epochs", "2", "--minutes", "30", "--resume", "--output", str(output))[0] == 2
    assert "--resume cannot change --epochs 1 → 2" in capsys.readouterr().err


def test_a_precision_that_the_hardware_chose_stays_and_may_be_given(train, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)
    flags = ("--precision", "auto")
    code, output = train(*flags, "--epochs", "1")
    assert code == 0
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    assert train(*flags, "--epochs", "2", "--resume", "--output", str(output))[0] == 0
    assert "float32 (as the run began)" in capsys.readouterr().out
    assert train("--precision", "no", "--epochs", "2", "--resume", "--output", str(output))[0] == 0
    assert train("--precision", "bf16", "--epochs", "2", "--resume", "--output", str(output))[0] == 2
    assert "--resume cannot change --precision no → bf16" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.slow
def test_batchnorm_stays_as_the_run_began_when_micro_batches_shrink(train, monkeypatch, capsys):
    """Otherwise the end of an epoch would be cut into other batches too."""
    monkeypatch.setattr(network, "MANY_IMAGES", 1)
    monkeypatch.setattr(network, "LARGE_BATCH", 10)
    flags = ("--recipe", "finetune", "--weights", "starter", "--solver", "auto", "--batch-size", "10")
    code, output = train(*flags, "--epochs", "1")
    assert code == 0
    assert "statistics of each batch: 21 images, 10 at a time" in capsys.readouterr().out
    more = ("--accumulate", "2", "--epochs", "2")
    assert train(*flags, *more, "--plan")[0] == 0
    assert "statistics kept: 5 images at a time are too few" in capsys.readouterr().out
    assert train(*flags, *more, "--resume", "--output", str(output))[0] == 0
    assert "statistics of each batch: as the run began" in capsys.readouterr().out
    _, first, second = metrics(output)
    assert second["step"] == 2 * first["step"]


def test_a_solved_head_stays_solved_where_less_memory_is_free(train, monkeypatch, capsys):
    flags = ("--recipe", "feature_extractor", "--weights", "starter", "--solver", "auto")
    code, output = train(*flags)
    assert code == 0
    before, need = metrics(output), 21 * 2 * 12 * (1024 + 3 * 6)  # bytes
    monkeypatch.setattr(devices, "free_memory", lambda device: need)
    assert train(*flags, "--plan")[0] == 0
    assert "trained by gradient steps alone: its features would need" in capsys.readouterr().out
    assert train(*flags, "--resume", "--output", str(output))[0] == 0
    assert "the head is solved." in capsys.readouterr().out
    assert metrics(output) == before


@pytest.mark.slow
def test_what_keeps_a_result_from_being_the_same_to_the_byte_is_printed(train, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "data" / "train", 3)
    write_images(tmp_path / "data" / "val", 2)
    code, output = train(data=tmp_path / "data")
    assert code == 0
    assert {"threads", "image_sizes"} <= json.loads((output / "config.json").read_text()).keys()

    def printed(*epochs: str) -> list[str]:
        capsys.readouterr()
        assert train("--resume", "--output", str(output), *epochs, data=tmp_path / "data")[0] == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.partition("differ: ")[2] for line in lines if "not be the same to the byte" in line]

    assert printed() == []
    write_images(tmp_path / "new", 3, seed=7)
    shutil.copytree(tmp_path / "new", tmp_path / "data" / "train", dirs_exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    monkeypatch.setattr(
        "finetune.reporting.records.version", lambda package: {"numpy": "0.1"}.get(package) or version(package)
    )
    differing = f"numpy {version('numpy')} → 0.1, threads {threads} → {threads + 1}, image files of other sizes"
    # Without a new epoch no new checkpoint is written: the old one is reported again.
    assert printed() == [f"{differing} under the same names"]
    assert printed("--epochs", "3") == [f"{differing} under the same names"]
    assert printed("--epochs", "3") == [], "all of it is that of the newest checkpoint"


def test_other_images_are_refused(train, tmp_path, capsys):
    for name, count in (("few", 3), ("more", 4)):
        write_images(tmp_path / name / "train", count)
        write_images(tmp_path / name / "val", 2)
    code, output = train(data=tmp_path / "few")
    assert code == 0
    (tmp_path / "few").rename(tmp_path / "moved")
    resume = ("--resume", "--output", str(output))
    assert train(*resume, data=tmp_path / "moved")[0] == 0, "the folder may have moved"
    assert train(*resume, data=tmp_path / "more")[0] == 2
    assert "does not hold the images that this run was trained on" in capsys.readouterr().err


def test_other_settings_are_refused_without_a_checkpoint_too(train, capsys):
    _, output = train("--epochs", "1", "--lr", "0.001")
    shutil.rmtree(output / "checkpoints")
    assert train("--epochs", "1", "--lr", "0.5", "--resume", "--output", str(output))[0] == 2
    assert "--resume cannot change --lr 0.001 → 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("epoch", "step", "records", "where"),
    [
        (0, 0, [], "epoch 1, after 0 steps"),
        (0, 0, [{"step": 0, "l2": 0.1}], "the head is solved"),
        (0, 7, [{"step": 6, "l2": 1.0}, {"step": 7, "l2": 0.1}], "the head is solved"),
        (0, 5, [{"step": 0, "l2": 0.1}], "epoch 1, after 5 steps"),
        (1, 9, [{"step": 0, "l2": 0.1}, {"step": 9}], "epoch 2, after 9 steps"),
        (3, 27, [{"step": 0, "l2": 0.1}, {"step": 27}], "all epochs, after 27 steps"),
    ],
)
def test_a_resumed_run_says_where_it_goes_on(epoch, step, records, where):
    config = {"versions": dict.fromkeys(resume.EXACT_VERSIONS), "threads": 1, "image_sizes": ""}
    saved = {"state": {"epoch": epoch, "step": step, "history": records}, "settings": config}
    found = Found(Path("run/checkpoints/newest"), saved, {})
    assert resume.report(Path("run"), found, config, epochs=3) == f"Resuming from {found.folder}: {where}."
