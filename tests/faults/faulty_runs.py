"""Small runs to which a fault happens, and what must hold after it."""

import pytest
from support import metrics

from finetune.training import saved_checkpoints

SMALL = ("--recipe", "finetune", "--epochs", "3", "--cache-gb", "0")
LONG = ("--recipe", "finetune", "--epochs", "500", "--cache-gb", "0")


def error_of(run) -> str:
    """The one message of a run, which has no traceback."""
    assert "Traceback" not in run.said, run.said
    errors = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.said
    return errors[0]


def assert_resumes(start, run, *flags: str) -> None:
    """Assert that the last checkpoint is whole, and that the run goes on from it for an epoch."""
    found = saved_checkpoints.find(run.output / "checkpoints")
    assert found is not None
    assert not found.damaged
    epochs = str(found.state["epoch"] + 1)
    again = start(run.output.name, *flags, "--epochs", epochs, "--resume")
    assert again.wait() == [0], again.said


def assert_close(one, other) -> None:
    """Assert that two runs learned the same up to rounding: without a cache, batches are computed in other sizes."""
    first, second = metrics(one), metrics(other)
    assert len(first) == len(second) > 0
    for record, known in zip(second, first, strict=True):
        for name in ("train_loss", "val_loss"):
            assert record[name] == pytest.approx(known[name], rel=1e-4)
