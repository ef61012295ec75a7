"""A run's folder is its own, and is read back with an error for each thing that can be wrong with it."""

import json
import re
import subprocess
import sys

import pytest

from finetune import recipes
from finetune.errors import UserError
from finetune.reporting import run_folder

RECORD = {
    **{"epoch": 1, "step": 5, "lr": {"head": 1e-3}, "train_loss": 0.7, "train_accuracy": 0.5, "val_loss": 0.6},
    **{"val_accuracy": 0.5, "images_per_second": 9.0, "seconds": 2.0},
}


@pytest.mark.parametrize("there", [False, True])
def test_of_two_runs_with_one_output_the_second_is_refused(tmp_path, there):
    output = tmp_path / "runs" / "mine"
    if there:
        output.mkdir(parents=True)
    assert run_folder.claim(output, named=True) == output
    with pytest.raises(UserError, match=r"mine (exists already\. Name a new or empty folder|holds a run already)"):
        run_folder.claim(output, named=True)


def test_a_default_name_that_is_taken_gets_a_number(tmp_path):
    names = [run_folder.claim(tmp_path / "finetune-2025", named=False).name for _ in range(3)]
    assert names == ["finetune-2025", "finetune-2025-2", "finetune-2025-3"]


def test_a_folder_that_another_process_is_writing_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0)
    recipe = recipes.from_settings("finetune", {"output": tmp_path, "resume": True})
    lock = f"lock = FileLock({str(tmp_path / run_folder.LOCK)!r}); lock.acquire(); print(flush=True)"
    code = f"import time; from filelock import FileLock; {lock}; time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert other.stdout.readline()
    try:
        with pytest.raises(UserError, match="another run is writing"):
            run_folder.prepare(recipe, tmp_path, {}, [])
        assert not (tmp_path / "config.json").exists()
    finally:
        other.kill()
        other.wait()
    for _ in range(2):  # the process that holds a folder may go on with it
        run_folder.prepare(recipe, tmp_path, {}, [])


def test_a_run_that_cannot_begin_leaves_a_folder_in_which_it_can(tmp_path, monkeypatch):
    recipe = recipes.from_settings("finetune", {"output": tmp_path / "run"})
    with monkeypatch.context() as patched:

        def full(*_):
            raise OSError(28, "No space left on device")

        patched.setattr(run_folder.files, "write_text", full)
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            run_folder.prepare(recipe, tmp_path / "run", {}, [])
    assert list((tmp_path / "run").iterdir()) == []
    assert run_folder.choose(recipe) == tmp_path / "run"
    run_folder.prepare(recipe, tmp_path / "run", {}, [])


def test_a_file_system_without_locks_is_enough(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    recipe = recipes.from_settings("finetune", {"output": tmp_path / "run"})
    run_folder.prepare(recipe, tmp_path / "run", {}, [])
    assert (tmp_path / "run" / "config.json").is_file()


# ---- choose ----------------------------------------------------------------------------------------------------------
def test_the_default_folder_has_the_recipes_name_and_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = run_folder.choose(recipes.from_settings("finetune", {}))
    assert re.fullmatch(r"runs/finetune-\d{8}-\d{6}", str(chosen))
    assert not chosen.exists()


def test_an_output_is_new_or_empty_or_with_resume_a_runs_folder(tmp_path):
    def choose(name, resume):
        return run_folder.choose(recipes.from_settings("finetune", {"output": tmp_path / name, "resume": resume}))

    for name in ("empty", "filled", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "filled" / "other").touch()
    (tmp_path / "file").touch()
    (tmp_path / "run" / "config.json").touch()
    for name in ("new", "empty"):
        assert choose(name, resume=False) == tmp_path / name
        with pytest.raises(UserError, match="is no run's folder"):
            choose(name, resume=True)
    for name, words in {"filled": "exists already", "file": "exists already", "run": "holds a run already"}.items():
        with pytest.raises(UserError, match=words):
            choose(name, resume=False)
    assert choose("run", resume=True) == tmp_path / "run"
    with pytest.raises(UserError, match="--resume needs --output"):
        run_folder.choose(recipes.from_settings("finetune", {"resume": True}))


def test_a_resumed_run_keeps_the_records_up_to_its_checkpoint(tmp_path):
    recipe = recipes.from_settings("finetune", {"output": tmp_path / "run"})
    run_folder.prepare(recipe, tmp_path / "run", {"lr": 1}, [])
    for epoch in (1, 2):
        run_folder.append_record(tmp_path / "run", RECORD | {"epoch": epoch})
    for name in (run_folder.RESUME_ME, run_folder.SUMMARY):
        (tmp_path / "run" / name).write_text("{}")

    again = recipes.from_settings("finetune", {"output": tmp_path / "run", "resume": True})
    run_folder.prepare(again, tmp_path / "run", {"lr": 2}, [RECORD])
    found = run_folder.read(tmp_path / "run")
    assert (found.config, found.history, found.ended) == ({"lr": 2}, [RECORD], False)
    assert not (tmp_path / "run" / run_folder.RESUME_ME).exists()


# ---- read ------------------------------------------------------------------------------------------------------------
def test_a_run_that_has_not_ended_is_summarised_so_far(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    records = [RECORD, RECORD | {"epoch": 2, "val_loss": 0.4}, RECORD | {"epoch": 3, "val_accuracy": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = run_folder.read(tmp_path)
    assert not found.ended
    assert (found.summary["best_epoch"], found.summary["epochs_run"], found.summary["total_seconds"]) == (2, 3, 6.0)


def test_a_run_that_has_not_ended_is_summarised_by_its_own_metric(tmp_path):
    (tmp_path / "config.json").write_text('{"best_by": "macro_f1"}')
    head = RECORD | {"epoch": 0, "val_macro_f1": 0.3, "l2": 0.1}
    records = [head, RECORD | {"val_macro_f1": 0.5}, RECORD | {"epoch": 2, "val_accuracy": 0.9, "val_macro_f1": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = run_folder.read(tmp_path).summary
    assert (summary["best_epoch"], summary["epochs_run"]) == (1, 2), "the solved head is no epoch"
    (tmp_path / "config.json").write_text('{"best_by": ["no metric"]}')
    assert run_folder.read(tmp_path).summary["best_epoch"] == 2, "by accuracy, where the metric is not known"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{}"}, "has not finished an epoch"),
        ({"config.json": "{}", "metrics.jsonl": '{"epoch": 1}\n'}, r"metrics.jsonl is damaged: step is missing"),
        ({"config.json": "{}", "metrics.jsonl": "{half"}, "metrics.jsonl is damaged"),
        ({"config.json": "{}", "metrics.jsonl": "[1]\n"}, "metrics.jsonl is damaged: it holds no JSON object"),
        ({"config.json": "{half", "metrics.jsonl": json.dumps(RECORD)}, "config.json is damaged"),
        (
            {"config.json": "{}", "metrics.jsonl": json.dumps(RECORD), "summary.json": "{half"},
            "summary.json is damaged",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        run_folder.read(tmp_path)
    with pytest.raises(UserError, match="it does not exist"):
        run_folder.read(tmp_path / "nowhere")
