"""Where a run of train.py is: its phase, seen from outside while it runs, and the line at which it was killed."""

from __future__ import annotations

import faulthandler
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable
from multiprocessing import RawArray
from pathlib import Path

from support import ROOT

PHASES = ("start", "features", "training", "evaluation", "checkpoint", "end")
KILL = signal.SIGUSR2  # faulthandler writes the lines; then the system's default ends the process, as SIGKILL does
SECONDS = 0.002  # between two looks
Frame = tuple[str, int]  # a file of this project, relative to its root, and a line

# The lines at which the sections of train.py begin, by the first word of their banners.
_BANNERS = {
    found.group(1): number
    for number, line in enumerate((ROOT / "train.py").read_text().splitlines(), 1)
    if (found := re.match(r" *# ---- (\w+)", line))
}


def phase_of(threads: list[list[Frame]]) -> str:
    """The phase of a process; each thread's frames, innermost first, the main thread's first of all."""
    main, every = threads[0], [file for frames in threads for file, _ in frames]
    files = [file for file, _ in main]
    at = next((line for file, line in main if file == "train.py"), 0)
    if at < _BANNERS["head"]:
        return "start"
    if at >= _BANNERS["end"]:
        return "end"
    if any(file.startswith("finetune/features/") or file.endswith("decoded_cache.py") for file in files):
        return "features"
    if "finetune/training/evaluation.py" in files:
        return "evaluation"
    return "checkpoint" if "finetune/training/checkpoint.py" in every else "training"  # a thread writes them


def _frames(found: Iterable[tuple[str, int]]) -> list[Frame]:
    """The frames that are in this project's code."""
    inside = [(Path(file), line) for file, line in found if file.startswith((f"{ROOT}/finetune/", f"{ROOT}/train.py"))]
    return [(str(file.relative_to(ROOT)), line) for file, line in inside]


class Watch:
    """Counts in which phase the processes of a run are, every two milliseconds; give `begin` to `Started`."""

    def __init__(self, output: Path, processes: int) -> None:
        self.seen = [RawArray("l", len(PHASES)) for _ in range(processes)]
        self.dumps = [output.with_name(f"{output.name}.{rank}.dump") for rank in range(processes)]

    def begin(self, rank: int) -> None:
        """In the process of a rank: count from now on, and write the lines when it is killed."""
        self.file = self.dumps[rank].open("w")
        faulthandler.register(KILL, self.file, all_threads=True, chain=True)
        threading.Thread(target=self._count, args=(rank,), daemon=True).start()

    def _count(self, rank: int) -> None:
        main = threading.main_thread().ident
        while True:
            frames = sys._current_frames()
            threads = [_frames(_walk(frames.pop(main))), *(_frames(_walk(frame)) for frame in frames.values())]
            self.seen[rank][PHASES.index(phase_of(threads))] += 1
            time.sleep(SECONDS)

    def looks(self, phase: str) -> int:
        """How often the main process was seen in a phase."""
        return self.seen[0][PHASES.index(phase)]

    def killed_at(self, rank: int) -> tuple[str, str]:
        """The phase in which a process was killed, and file, line and function of its main thread."""
        text = self.dumps[rank].read_text() if self.dumps[rank].exists() else ""
        blocks = [block for block in re.split(r"(?:Current thread|Thread) 0x", text) if "File" in block]
        threads = [
            _frames((file, int(line)) for file, line in re.findall(r'File "(.+)", line (\d+) in', block))
            for block in reversed(blocks)  # faulthandler begins with the newest thread
        ]
        if not threads or not threads[0]:
            return "start", "before train.py"
        file, line = threads[0][0]
        return phase_of(threads), f"{file}:{line}"


def _walk(frame) -> Iterable[tuple[str, int]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
