"""`--folds`: the runs of all folds, and what is written above them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from support import ROOT, metrics

from finetune.features.store import Store
from finetune.reporting import results
from finetune.runtime import cpu
from finetune.training import interrupts

SOLVED = ("--weights", "starter", "--solver", "lbfgs")


def rows(output) -> list[dict[str, str]]:
    with (output / "out_of_fold.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_once_by_a_model_that_did_not_see_it(train, image_folder, capsys):
    code, output = train("--folds", "3", *SOLVED)
    assert code == 0
    found = rows(output)
    images = sorted(str(path) for split in ("train", "val") for path in (image_folder / split).rglob("*.jpg"))
    assert sorted(row["image"] for row in found) == images
    assert all(f"/{row['true']}/" in row["image"] for row in found)
    assert all(
        sum(float(row[name]) for name in ("blue", "green", "red")) == pytest.approx(1, abs=1e-5) for row in found
    )
    assert all(row["predicted"] == max(("blue", "green", "red"), key=lambda name: float(row[name])) for row in found)
    summary = json.loads((output / "summary.json").read_text())
    correct = [row["true"] == row["predicted"] for row in found]
    assert summary["out_of_fold_accuracy"] == pytest.approx(sum(correct) / len(correct))
    each = [json.loads((output / f"fold-{k}" / "summary.json").read_text())["test_accuracy"] for k in (1, 2, 3)]
    assert summary["accuracy"] == pytest.approx(sum(each) / 3)
    assert (summary["folds"], summary["images"]) == (3, len(images))
    assert (output / "plots" / "confusion.png").exists()
    assert "A fold's images chose nothing in its run." in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_file_names_that_are_no_utf8_are_written_as_they_are(train, image_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    named = {}
    for split in ("train", "val"):
        path = min((data / split).rglob("*.jpg"))
        named[split] = str(path.rename(path.with_name(os.fsdecode(b"caf\xe9.jpg"))))
    code, output = train("--folds", "3", *SOLVED, data=data)
    assert code == 0
    assert set(named.values()) <= {row["image"] for row in rows(output)}
    # Every label is wrong, so that every image is an error.
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / "other")
        (data / split / "blue").rename(data / split / "red")
        (data / split / "other").rename(data / split / "blue")
    command = [sys.executable, "-m", "finetune", "evaluate", output / "fold-1", "--data", data]
    subprocess.run([*command, "--output", tmp_path / "out"], cwd=ROOT, check=True)
    assert b"caf\xe9.jpg" in (tmp_path / "out" / "errors.csv").read_bytes()
    assert "caf" in (tmp_path / "out" / "evaluation.json").read_text()


@pytest.mark.slow
def test_features_are_computed_once_for_all_folds(train, monkeypatch):
    filled, fill = [], Store._fill
    monkeypatch.setattr(Store, "_fill", lambda self, *rest: filled.append(rest[1]) or fill(self, *rest))
    code, output = train("--folds", "3", *SOLVED)
    assert code == 0
    assert filled == ["pool"] * 2, "the images, for head and validation, and their mirror images"
    for fold in (1, 2, 3):
        own, alone = train("--folds", "3", "--fold", str(fold), "--cache-gb", "0", *SOLVED)
        assert own == 0
        for with_cache, without in zip(metrics(output / f"fold-{fold}"), metrics(alone), strict=True):
            assert with_cache["val_loss"] == pytest.approx(without["val_loss"], rel=1e-4)


@pytest.mark.slow
def test_later_folds_have_the_precision_of_the_first(train, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)
    flags = ("--folds", "3", "--precision", "auto")
    code, output = train(*flags)
    assert code == 0
    shutil.rmtree(output / "fold-3")
    assert train("--folds", "3", "--precision", "bf16", "--resume", "--output", str(output))[0] == 2
    assert "--resume cannot change --precision no → bf16" in capsys.readouterr().err
    assert not (output / "fold-3").exists()
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    assert train(*flags, "--resume", "--output", str(output))[0] == 0
    precisions = [json.loads((output / f"fold-{k}" / "summary.json").read_text())["precision"] for k in (1, 2, 3)]
    assert precisions == ["no", "no", "no"]


@pytest.mark.slow
def test_a_stopped_cross_validation_resumes_to_the_same_result(train, monkeypatch, capsys):
    flags = ("--folds", "3", "--recipe", "finetune", "--epochs", "2")
    _, whole = train(*flags)
    _, output = train(*flags)
    for left_over in ("summary.json", "out_of_fold.csv"):
        (output / left_over).unlink()
    shutil.rmtree(output / "fold-3")
    (output / "fold-2" / "summary.json").unlink()
    exchange = interrupts.Interrupts.exchange

    def stop(self) -> None:
        self.signal = "SIGTERM"
        exchange(self)

    with monkeypatch.context() as patched:
        patched.setattr(interrupts.Interrupts, "exchange", stop)
        code, _ = train(*flags, "--output", str(output), "--resume")
    assert code == 75
    assert f"That was fold 2 of 3. Go on with all: --folds 3 --resume --output {output}" in capsys.readouterr().out
    assert not (output / "summary.json").exists()
    kept = (output / "fold-1" / "summary.json").read_bytes()
    code, _ = train(*flags, "--output", str(output), "--resume")
    assert code == 0
    assert (output / "fold-1" / "summary.json").read_bytes() == kept
    assert (output / "out_of_fold.csv").read_bytes() == (whole / "out_of_fold.csv").read_bytes()


@pytest.mark.slow
def test_a_signal_while_a_fold_writes_its_results_stops_the_next(train, monkeypatch):
    written, write = [], results.write

    def write_and_signal(output, *rest):
        write(output, *rest)
        written.append(output.name)
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(results, "write", write_and_signal)
    flags = ("--folds", "3", "--recipe", "finetune", "--epochs", "1")
    code, output = train(*flags)
    assert (code, written) == (75, ["fold-1"])
    assert not (output / "out_of_fold.csv").exists()
    assert train(*flags, "--output", str(output), "--resume")[0] == 0
    assert written == ["fold-1", "fold-2", "fold-3"]


@pytest.mark.slow
def test_commands_on_the_folder_above_the_folds_name_one(train, call):
    code, output = train("--folds", "2", *SOLVED)
    assert code == 0
    seen = 0
    for words in (("evaluate", output), ("predict", output, output), ("plot", output), ("compare", output, output)):
        code, _, error = call(*words)
        assert code == 2, words
        assert str(output / "fold-1") in " ".join(error.split()), (words, error)
        seen += 1
    assert seen == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (("--folds", "3", "--seed", "1"), "--seed 0 → 1"),
        (("--folds", "2"), "--folds 3 → 2"),
        (("--folds", "3", "--l2", "0.1"), "--l2 None → 0.1"),
    ],
)
def test_finished_folds_are_kept_with_their_own_settings_alone(train, capsys, flags, change):
    _, output = train("--folds", "3", *SOLVED)
    before = (output / "out_of_fold.csv").read_bytes()
    code, _ = train(*flags, *SOLVED, "--output", str(output), "--resume")
    assert code == 2
    assert f"--resume cannot change {change}." in " ".join(capsys.readouterr().err.split())
    assert (output / "out_of_fold.csv").read_bytes() == before
    assert train("--folds", "3", *SOLVED, "--output", str(output), "--resume")[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds", "3", "--preview"), "--preview is for one run, and --folds 3 are several. Add --fold 1"),
        (("--fold", "1"), "--fold 1: there are folds with --folds only"),
        (("--folds", "2", "--fold", "3"), "--fold 3: --folds 2 has no such fold"),
        (("--folds", "1"), "--folds 1"),
        (("--folds", "20"), "too few of blue (10), green (10), red (10): --folds 10 is the largest that works"),
    ],
)
def test_a_mistake_writes_nothing(train, capsys, flags, message):
    code, output = train(*flags)
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_the_plan_is_that_of_a_fold(train, capsys):
    code, output = train("--folds", "3", "--plan", *SOLVED)
    assert code == 0
    assert "test; fold 1 of 3, whose images are the test split" in " ".join(capsys.readouterr().out.split())
    assert not output.exists()
