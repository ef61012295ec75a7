"""A server of trained models in this process, and requests to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import reset_accelerate


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    @property
    def json(self):
        return json.loads(self.text)


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    log: list[str] = field(default_factory=list)
    """What it has logged."""

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request; `Content_Type="image/png"` is a header."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.headers), answer.read())
        connection.close()
        return found

    def upload(self, *files: bytes, path: str = "/predict", name: str = "image.jpg", **headers: str) -> Answer:
        """Send files as a form."""
        return self.send(
            "POST", path, form(*files, name=name), Content_Type="multipart/form-data; boundary=xx", **headers
        )

    def talk(self, parts: Iterable[bytes], pause: float = 0) -> bytes:
        """Send parts with a pause after each until the server closes the connection; what it answered."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass
            try:
                while more := connection.recv(4096):
                    received += more
            except OSError:
                pass
        return received


def assert_plain(answer: Answer) -> None:
    """Assert that an answer is a reason in JSON which tells nothing of the server."""
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    assert not any(word in answer.text for word in ("Traceback", "site-packages", "/tmp", "object at 0x", ".py"))


def form(*files: bytes, name: str = "image.jpg") -> bytes:
    """The body of a form with these files."""
    head = f'--xx\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + data + b"\r\n" for data in files) + b"--xx--\r\n"


@contextmanager
def serve(*runs: Path) -> Iterator[Running]:
    """Serve some runs inside the block."""
    for module in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(module)
    from finetune.inference.predictor import open_run
    from finetune.serving import app, served, server

    reset_accelerate()
    models = [served.serve(run, open_run(run, "no"), 16) for run in runs]  # the page tells them apart by name
    with server.bind("127.0.0.1", 0) as bound:
        running = Running(bound.getsockname()[1])
        program = server.make(app.make(models, "127.0.0.1", ["demo.example"], running.log.append))
        thread = threading.Thread(target=program.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not program.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield running
        program.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
    for one in models:
        one.batcher.close()
