"""Nothing is sent without a yes: the commands run with the network cut, and every attempt to use it is recorded."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from support import ROOT, write_model

pytestmark = pytest.mark.slow

STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg")
HOOK = """
import sys

def hook(name, given):
    if name in ("socket.connect", "socket.getaddrinfo") and not isinstance(given[1], str | bytes):  # no path
        open({audit!r}, "a").write(f"{{name}} {{given}}\\n")

sys.addaudithook(hook)
"""


@pytest.fixture
def attempts(tmp_path):
    """Run a command without a network; returns its attempts to reach an internet address.

    strace sees every system call of every process, that of W&B's program in Go included. Where it is missing, an audit
    hook sees Python's processes alone.
    """
    cut = ["unshare", "--map-root-user", "--net"]
    linux = sys.platform.startswith("linux")
    if not linux or subprocess.run([*cut, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs Linux, and the right to make a network namespace")
    home, trace, audit = tmp_path / "home", tmp_path / "trace", tmp_path / "audit"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.format(audit=str(audit)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "CI"))}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment |= {"PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}"}
    strace = [*STRACE, "-o", str(trace)] if shutil.which("strace") else []

    def run(*words: str) -> list[str]:
        trace.write_text("")
        audit.write_text("")
        command = [*cut, *strace, sys.executable, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        run.code, run.said = done.returncode, done.stdout + done.stderr
        return [*re.findall(".*AF_INET.*", trace.read_text()), *audit.read_text().splitlines()]

    return run


def test_an_attempt_is_seen(attempts):
    code = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('203.0.113.1', 80))"
    assert len(attempts("-c", code)) >= 1


def test_the_main_command_tries_to_reach_nobody(attempts, tmp_path):
    """With the default tracker, W&B, on a machine without an account there."""
    flags = ["--recipe", "feature_extractor", "--output", "run"]
    assert attempts(str(ROOT / "train.py"), *flags) == []
    assert "W&B: offline (no API key" in attempts.said, attempts.said
    assert (tmp_path / "run" / "summary.json").is_file(), attempts.said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("form", ["onnx", "torch-export", "state-dict", "openvino", "executorch"])
def test_an_export_tries_to_reach_nobody(attempts, tmp_path, form):
    if form not in ("torch-export", "state-dict"):
        pytest.importorskip(form)
    write_model(tmp_path / "model")
    assert attempts("-m", "finetune", "export", "model", "--format", form) == []
    assert attempts.code == 0, attempts.said
    assert not list((tmp_path / "home").glob("intel*")), "OpenVINO's telemetry numbers its users there"
