"""Errors that are reported as one message."""

import errno

import pytest
import torch

from finetune import errors
from finetune.errors import UserError, explanation, unknown


def test_an_unknown_name_gets_the_nearest_ones_or_all():
    assert str(unknown("model", "ResNet-18", ["resnet18", "vgg16"])) == (
        "unknown model 'ResNet-18'. Did you mean resnet18?"
    )
    assert str(unknown("recipe", "x", ["b", "a"])) == "unknown recipe 'x'. Known: a, b."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("--lr 0: must be above 0."), "--lr 0: must be above 0."),
        (RuntimeError("Caught UserError in worker 0.\n  File …\nfinetune.errors.UserError: no image\n"), "no image"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory. Lower it."),
        (MemoryError(), "out of memory. Lower it."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory. Lower it."),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), "the disk is full (/runs/x). Free some space"),
        (RuntimeError("write failed: No space left on device"), "the disk is full. Free some space"),
        (RuntimeError("could not create a primitive"), "out of memory. Lower it."),
        (RuntimeError("can't start new thread"), "out of memory. Lower it."),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            "a disk or its server failed, or became read-only: [Errno",
        ),
        (RuntimeError("I/O error: Input/output error (os error 5)"), "a disk or its server failed"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files. Raise the limit (ulimit -n 4096)"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x cannot be used: Permission denied. Check its owner",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "DataLoader worker (pid 7) is killed by signal: Killed. Perhaps the machine's memory ran out: lower",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …"),
            "DataLoader worker (pid 7) is killed by signal: Bus error: /dev/shm, through which image workers",
        ),
        (
            RuntimeError("Caught …\nRuntimeError: unable to allocate shared memory(shm): No space left on device (28)"),
            "/dev/shm, through which image workers pass images, is full. Use --workers 0",
        ),
    ],
)
def test_an_error_that_the_user_can_act_on_has_a_message(monkeypatch, error, message):
    monkeypatch.setattr(errors, "_advice", "Lower it.")
    assert explanation(error).startswith(message)


@pytest.mark.parametrize("error", [ValueError("3"), OSError(errno.EACCES, "Permission denied"), KeyError("a")])
def test_any_other_error_keeps_its_traceback(error):
    assert explanation(error) is None


def test_control_characters_are_spelled_out():
    assert errors.printable("a\x1b[2J\x07\x9b\r\x7f") == "a\\x1b[2J\\x07\\x9b\\r\\x7f"
    assert errors.printable("chien, кошка, 🐱‍👤\tx\n") == "chien, кошка, 🐱‍👤\tx\n"


def test_the_advice_for_a_full_memory_is_the_runs(monkeypatch):
    monkeypatch.setattr(errors, "_advice", errors._advice)
    errors.set_memory_advice("Use --batch-size 8.")
    assert explanation(MemoryError()) == "out of memory. Use --batch-size 8."
