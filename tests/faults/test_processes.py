"""Processes that are killed, stopped or starved, a clock that jumps, a terminal that closes: one message, no loss."""

import multiprocessing.connection
import os
import pty
import resource
import signal
import sys
import threading
import time

import psutil
import pytest
from faulty_runs import LONG, SMALL, assert_resumes, error_of
from support import assert_same, metrics, wait_for

pytestmark = pytest.mark.slow


def test_a_killed_worker_ends_the_run_with_one_message(start):
    run = start("run", *LONG, "--workers", "1")
    wait_for("checkpoints/[0-9]*", run)
    workers = psutil.Process(run.ranks[0].pid).children()
    assert workers
    workers[0].kill()
    assert run.wait(30) == [2], run.said
    assert "worker" in error_of(run)
    assert "lower --workers" in error_of(run)
    assert_resumes(start, run, *LONG)


def test_a_worker_killed_while_another_hands_over_a_batch_ends_the_run_with_one_message(start):
    """torch's signal handler raises its error in whatever the training process does at that moment."""

    def break_a_handover(rank: int) -> None:
        answer, calls = multiprocessing.connection.answer_challenge, []

        def broken(connection, key):
            calls.append(1)
            if len(calls) == 20:
                raise RuntimeError("DataLoader worker (pid 1234) is killed by signal: Killed. ")
            return answer(connection, key)

        multiprocessing.connection.answer_challenge = broken

    run = start("run", *LONG, "--workers", "1", prepare=break_a_handover)
    assert run.wait(30) == [2], run.said
    assert "pid 1234" in error_of(run)
    assert_resumes(start, run, *LONG)


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_processes_the_other_ends_with_a_killed_one(start, rank):
    run = start("run", *LONG, processes=2)
    wait_for("checkpoints/[0-9]*", run)
    run.signal(signal.SIGKILL, rank)
    codes = run.wait(30)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert "Traceback" not in run.said
    assert "another process of this run ended" in run.said
    assert_resumes(start, run, *LONG)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_for_a_while_changes_nothing(start, rank):
    """FAULT_SECONDS=300 stops it for minutes."""
    whole = start("whole", *SMALL, processes=2)
    assert whole.wait() == [0, 0], whole.said
    run = start("run", *SMALL, processes=2)
    wait_for("checkpoints/[0-9]*", run)
    run.signal(signal.SIGSTOP, rank)
    time.sleep(float(os.environ.get("FAULT_SECONDS", 3)))
    run.signal(signal.SIGCONT, rank)
    assert run.wait() == [0, 0], run.said
    assert_same(whole.output, run.output, {"optimizer.safetensors"})


def test_a_clock_that_jumps_changes_nothing(start):
    def jump(rank: int) -> None:
        real, calls = time.time, []

        def jumping() -> float:
            calls.append(1)
            return real() + (-3e8, 0, 3e8)[len(calls) % 3]

        time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)

    whole = start("whole", *SMALL, processes=2)
    assert whole.wait() == [0, 0], whole.said
    run = start("run", *SMALL, processes=2, prepare=jump)
    assert run.wait() == [0, 0], run.said
    assert_same(whole.output, run.output, {"optimizer.safetensors"})
    assert all(0 < record["seconds"] < 1000 for record in map(eval, (run.output / "metrics.jsonl").open()))


@pytest.mark.parametrize("mebibytes", [10, 60, 150])
def test_a_limit_of_memory_is_enough_or_named(start, mebibytes):
    def limit(rank: int) -> None:
        size = psutil.Process().memory_info().vms + mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    run = start("run", *SMALL, "--image-size", "128", prepare=limit)
    if run.wait() != [0]:
        assert run.wait() == [2], run.said
        assert "out of memory" in error_of(run)
    if list(run.output.glob("checkpoints/*")):
        assert_resumes(start, run, *SMALL, "--image-size", "128")


@pytest.mark.parametrize("files", [5, 16])
def test_a_limit_of_open_files_is_enough_or_named(start, files):
    def limit(rank: int) -> None:
        os.closerange(3, 1024)
        sys.unraisablehook = lambda _: None  # torch's loader warns of its half-made parts when it is deleted
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    run = start("run", *SMALL, "--workers", "2", prepare=limit)
    if run.wait() != [0]:
        assert run.wait() == [2], run.said
        assert "too many open files" in error_of(run).lower()
    if list(run.output.glob("checkpoints/*")):
        assert_resumes(start, run, *SMALL)


def test_a_closed_terminal_stops_the_run_after_a_checkpoint(start):
    master, slave = pty.openpty()
    name = os.ttyname(slave)

    def sit_at_terminal(rank: int) -> None:
        os.closerange(3, 100)
        os.setsid()
        terminal = os.open(name, os.O_RDWR)  # the first a session opens is its own
        for number in (0, 1, 2):
            os.dup2(terminal, number)

    run = start("run", *LONG, prepare=sit_at_terminal)
    os.close(slave)
    reader = threading.Thread(target=drain, args=(master,))
    reader.start()
    wait_for("checkpoints/[0-9]*", run)
    os.close(master)
    assert run.wait(30) == [75]
    assert (run.output / "resume-me").exists()
    assert_resumes(start, run, *LONG)
    reader.join()


def drain(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass


def test_a_hangup_under_nohup_is_ignored(start):
    run = start("run", *SMALL, prepare=lambda rank: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for("checkpoints/[0-9]*", run)
    run.signal(signal.SIGHUP)
    assert run.wait() == [0], run.said


def test_of_two_runs_with_one_output_one_trains_and_the_other_is_refused(start, tmp_path):
    first, second = (start("run", *SMALL) for _ in range(2))
    assert sorted(first.wait() + second.wait()) == [0, 2]
    assert len(metrics(first.output)) == 3
