"""A run that was killed or stopped resumes as if nothing had happened."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
import wandb_file
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file
from support import STATEFUL, assert_same, metrics, no_pictures, reset_accelerate, wait_for, write_images

from finetune.training import checkpoint, evaluation, resume, saved_checkpoints


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    no_pictures(monkeypatch)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(start, processes):
    whole = start("whole", *STATEFUL, processes=processes)
    assert set(whole.wait()) == {0}, whole.said
    killed = start("killed", *STATEFUL, processes=processes)
    wait_for("checkpoints/0001-0000000[45]", killed)
    killed.signal(signal.SIGKILL)
    assert set(killed.wait()) == {-signal.SIGKILL}
    resumed = start("killed", *STATEFUL, "--resume", processes=processes)
    assert set(resumed.wait()) == {0}, resumed.said
    assert "Resuming from" in resumed.said
    assert_same(whole.output, killed.output)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_process_stops_all_after_a_checkpoint_with_75(start, number):
    flags = ("--recipe", "finetune", "--epochs", "5000")
    run = start("run", *flags, "--tracker", "wandb", processes=2)
    wait_for("metrics.jsonl", run)
    run.signal(number, rank=1)
    assert run.wait(30) == [75, 75], run.said
    assert "--resume --output" in run.said
    assert "Traceback" not in run.said
    assert (run.output / "resume-me").exists()
    assert not (run.output / "summary.json").exists()
    epochs = len(metrics(run.output))
    again = start("run", *flags[:2], "--epochs", str(epochs + 2), "--resume", processes=2)
    assert set(again.wait()) == {0}, again.said
    assert f"Changed since: --epochs 5000 → {epochs + 2}" in again.said
    assert [line["epoch"] for line in metrics(run.output)] == list(range(1, epochs + 3))
    assert not (run.output / "resume-me").exists()


def test_a_run_stopped_in_evaluation_resumes_with_the_evaluation(train, monkeypatch):
    flags = ("--recipe", "finetune", "--eval-batch-size", "2")
    code, whole = train(*flags)
    assert code == 0
    calls, original = [], evaluation.evaluate

    def stopped_in_the_second_epoch(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", stopped_in_the_second_epoch)
    code, output = train(*flags)
    assert code == 75
    assert len(metrics(output)) == 1
    newest = max((output / "checkpoints").iterdir()).name
    assert newest.startswith("0001-"), "the second epoch is trained and not evaluated"
    monkeypatch.setattr(evaluation, "evaluate", original)
    assert train(*flags, "--resume", "--output", str(output))[0] == 0
    assert metrics(whole) == metrics(output)


def test_a_run_on_two_processes_resumes_on_one(start):
    flags = ("--recipe", "finetune", "--model", "squeezenet1_1", "--batch-size", "4", "--checkpoint-every", "1")
    whole = start("whole", *flags)
    assert set(whole.wait()) == {0}, whole.said
    run = start("run", *flags, processes=2)
    wait_for("checkpoints/0001-00000007", run)
    run.signal(signal.SIGTERM)
    assert set(run.wait()) == {75}, run.said
    run = start("run", *flags, "--resume", "--accumulate", "2")
    assert set(run.wait()) == {0}, run.said
    assert "--accumulate 1 → 2, --num-processes 2 → 1" in run.said
    for line, other in zip(metrics(whole.output), metrics(run.output), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)
        assert line["train_accuracy"] == other["train_accuracy"], "each image is counted once"


def test_early_stopping_counts_on_across_a_restart(train):
    flags = ("--recipe", "feature_extractor", "--patience", "1", "--best-by", "loss", "--lr", "1e-12")
    code, output = train(*flags, "--epochs", "9", "--min-delta", "1")
    assert code == 0
    (output / "summary.json").unlink()
    assert train(*flags, "--epochs", "9", "--min-delta", "1", "--resume", "--output", str(output))[0] == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["stopped_early"]
    assert summary["epochs_run"] == len(metrics(output)) == 2


def test_a_run_that_has_ended_can_be_resumed_with_more_epochs(train):
    code, ended = train("--schedule", "constant", "--epochs", "1")
    assert code == 0
    code, _ = train("--schedule", "constant", "--epochs", "3", "--resume", "--output", str(ended))
    assert code == 0
    code, whole = train("--schedule", "constant", "--epochs", "3")
    assert metrics(ended) == metrics(whole)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (ended, whole))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_finished_run_without_its_checkpoints_is_not_trained_again(train, capsys):
    code, output = train("--epochs", "1")
    assert code == 0
    shutil.rmtree(output / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert train("--epochs", "2", "--resume", "--output", str(output))[0] == 2
    assert "is a finished run without checkpoints" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}


class Unpicklable(Exception):
    def __init__(self, *, why: str) -> None:
        super().__init__(why)


def fail_to_find(output):
    """On each of two processes, of which the main one alone looks."""
    accelerator = Accelerator(cpu=True)
    for error, expected in (
        (PermissionError(13, "denied"), PermissionError),
        (Unpicklable(why="denied"), Unpicklable if accelerator.is_main_process else RuntimeError),
    ):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(saved_checkpoints, "find", lambda _, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(expected, match="denied"):
                resume.find(output, {}, accelerator)
    (output / f"ended {accelerator.process_index}").touch()


def test_an_error_in_the_search_for_a_checkpoint_is_raised_on_all_processes(tmp_path):
    reset_accelerate()
    debug_launcher(fail_to_find, (tmp_path,), num_processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended 0", "ended 1"]


@pytest.mark.slow
def test_resuming_needs_no_weights_file(train, tmp_path):
    weights = tmp_path / "weights.safetensors"
    _, first = train("--epochs", "1")
    (first / "model" / "model.safetensors").rename(weights)
    flags = ("--recipe", "feature_extractor", "--weights", str(weights), "--schedule", "constant")
    code, whole = train(*flags, "--epochs", "2")
    assert code == 0
    code, run = train(*flags, "--epochs", "1")
    weights.unlink()
    assert train(*flags, "--epochs", "2", "--resume", "--output", str(run))[0] == 0
    assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("keep", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been(train, capsys, keep):
    flags = ("--recipe", "last_layers", "--checkpoint-every", "1", "--keep-checkpoints")
    (_, whole), (code, output) = train(*flags, keep), train(*flags, "9")
    assert code == 0
    newest = sorted((output / "checkpoints").iterdir())[-2]  # the last but one: the last will be missing
    shutil.rmtree(max((output / "checkpoints").iterdir()))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train(*flags, keep, "--resume", "--output", str(output))[0] == 0
    assert f"Deleted {newest.name}, which is damaged: model.safetensors does not match" in capsys.readouterr().out
    assert_same(whole, output, tensors={"model.safetensors", "optimizer.safetensors"})
    assert len(list((output / "checkpoints").iterdir())) == int(keep)


@pytest.mark.slow
def test_checkpoints_that_were_skipped_change_nothing(train, tmp_path, monkeypatch):
    for seed, split in enumerate(("train", "val", "test")):
        write_images(tmp_path / "data" / split, 3, seed=seed)
    flags = ("--recipe", "finetune", "--lr", "1e-2", "--epochs", "4", "--data", str(tmp_path / "data"))

    def names(output):
        return sorted(path.name[:4] for path in (output / "checkpoints").iterdir())

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "TIME_LIMIT", math.inf)
        _, whole = train(*flags)
    assert names(whole) == ["0003", "0004"]
    monkeypatch.setattr(checkpoint, "TIME_LIMIT", 0)
    code, output = train(*flags)
    assert code == 0
    assert names(output) == ["0001", "0004"]
    assert_same(whole, output, tensors={"model.safetensors"})
    shutil.rmtree(max((output / "checkpoints").iterdir()))
    assert train(*flags, "--resume", "--output", str(output))[0] == 0
    assert_same(whole, output, tensors={"model.safetensors"})


def test_a_model_folder_that_a_kill_interrupted_is_restored(train):
    flags = ("--lr", "1e-12", "--best-by", "loss")
    code, output = train(*flags, "--epochs", "1")
    assert code == 0
    whole = (output / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(output / "model")
    (output / ".model.new").mkdir()
    assert train(*flags, "--epochs", "1", "--resume", "--output", str(output))[0] == 0
    assert (output / "model" / "model.safetensors").read_bytes() == whole
    assert not (output / ".model.new").exists()


@pytest.mark.slow
def test_the_tracker_keeps_its_id_and_its_steps_where_no_checkpoint_was_written(train):
    flags = ("--tracker", "wandb", "--log-every", "1", "--epochs", "1")
    _, output = train(*flags)
    shutil.rmtree(output / "checkpoints")
    (output / "summary.json").unlink()
    assert train(*flags, "--resume", "--output", str(output))[0] == 0
    files = sorted(output.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert files[0].name == files[1].name, "one id"
    steps = [row["_step"] for path in files for row in wandb_file.ended(path).rows]
    assert steps == sorted(set(steps))
    assert len(steps) >= 3


def test_a_run_without_a_checkpoint_starts_from_the_beginning(train, capsys):
    _, output = train("--epochs", "1")
    for path in (output / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (output / "summary.json").unlink()
    assert train("--epochs", "1", "--resume", "--output", str(output))[0] == 0
    assert "has no checkpoint yet. From the beginning." in capsys.readouterr().out
    assert len(metrics(output)) == 1
