"""`python -m finetune demo`: its port, its mistakes and its end."""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from support import ROOT

from finetune.commands import demo


@pytest.fixture
def packages():
    for module in demo.PACKAGES:
        pytest.importorskip(module)


def test_without_its_packages_the_demo_tells_how_to_get_them(trained, call, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    code, _, err = call("demo", trained / "fast")
    assert code == 2
    assert "pip install fastapi uvicorn python-multipart" in err


@pytest.mark.usefixtures("packages")
def test_mistakes_are_told_before_anything_is_served(trained, call, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("demo", trained / "fast", "--port", port)
        free = re.search(rf"port {port} is in use; (\d+) is free: --port \1\n", err)
        assert code == 2
        assert int(free.group(1)) > port
    cases = (
        ((tmp_path / "none", "--port", 0), "is no run"),
        ((trained / "fast", "--port", 99999), "at least 0 and at most 65535"),
        ((trained / "fast", "--port", -1), "at least 0 and at most 65535"),
        ((trained / "fast", "--host", "no.such.host.invalid"), "there is no such host"),
        ((trained / "fast", "--batch-size", 0), "--batch-size"),
        ((), "demo takes a run or more"),
    )
    for words, message in cases:
        code, _, err = call("demo", *words)
        assert code == 2, words
        assert message in err
    assert len(cases) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_cleanly(trained, number):
    runs = [trained / "fast", trained / "slow", trained / "fast" / "model"]
    command = [sys.executable, "-m", "finetune", "demo", *runs, "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    address = re.fullmatch(r"fast, slow, fast-2: (http://127\.0\.0\.1:\d+)  \(Ctrl-C ends it\)\n", line).group(1)
    models = json.load(urllib.request.urlopen(f"{address}/model"))["models"]
    assert [model["run"] for model in models] == ["fast", "slow", "fast-2"]
    assert models[0]["version"] == models[2]["version"] != models[1]["version"]
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
