"""A disk on which the n-th write fails, and runs of train.py that write there."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

HERE = Path(__file__).parent
LAYOUT = "4l4096s4128s"  # struct state of failing_writes.c
EVERY_LATER_ONE = 2**31


class FaultDisk:
    """Runs train.py in forked processes whose writes below one folder can fail, whichever library makes them.

    The calls are intercepted in C: Python's, those of safetensors (Rust), of torch and SQLite (C). Not seen: a program
    that makes system calls itself, such as W&B's own process.
    """

    def __init__(self, scratch: Path, data: Path) -> None:
        compiler = shutil.which("cc")
        if not sys.platform.startswith("linux") or compiler is None:
            pytest.skip("needs Linux and a C compiler")
        library, held = scratch / "failing_writes.so", scratch / "state"
        source = HERE / "failing_writes.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
        held.write_bytes(bytes(struct.calcsize(LAYOUT)))
        with held.open("r+b") as file:
            self.state = mmap.mmap(file.fileno(), 0)
        environment = {**os.environ, "LD_PRELOAD": str(library), "FAILING_STATE": str(held)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.data = data
        self.warm = subprocess.Popen(
            [sys.executable, HERE / "warm.py"],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(
        self, folder: Path, output: Path, *flags: str, nth: int = 0, last: int | None = None, code: int = 0
    ) -> tuple[int, str]:
        """Run train.py; from the `nth` write below `folder` to the `last` one, or to the end, all fail with `code`.

        Returns its exit code and what it printed.
        """
        last = last or EVERY_LATER_ONE
        struct.pack_into(LAYOUT, self.state, 0, 0, nth, last, code, str(folder).encode(), b"")
        asked = {"output": str(output), "data": str(self.data), "flags": flags}
        print(json.dumps(asked), file=self.warm.stdin, flush=True)
        return tuple(json.loads(self.warm.stdout.readline()))

    @property
    def writes(self) -> int:
        """How many writes the last run made, failed ones included."""
        return struct.unpack_from("l", self.state)[0]

    @property
    def failed(self) -> str:
        """The first call that failed, and its path."""
        return struct.unpack(LAYOUT, self.state)[5].split(b"\0")[0].decode()

    def close(self) -> None:
        self.warm.stdin.close()
        self.warm.wait(30)
