"""`python -m finetune push`, to a local stand-in for the Hugging Face Hub."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from support import CLASSES, write_model

from finetune import __main__ as program
from finetune.runtime.entry import exit_code


class Hub(BaseHTTPRequestHandler):
    """Accepts a repository and a commit, and stores the files. No file goes through LFS."""

    files: dict
    refuse = False

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else self._chunks()
        if self.refuse:
            return self._answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            self.files["created"] = json.loads(body)
            return self._answer({"url": "https://huggingface.co/me/bees", "id": "me/bees", "name": "me/bees"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self._answer(
                {"commitUrl": "https://huggingface.co/me/bees/commit/0", "commitOid": "0" * 40, "success": True}
            )
        return self._answer({"valid": True} if "validate-yaml" in self.path else {}, 200)

    def do_GET(self):
        self._answer({"sha": "0" * 40, "id": "me/bees", "siblings": []})

    def _chunks(self):
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in's handler, with `files` by path. huggingface_hub uses it, with a token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("localhost", 0), type("Kept", (Hub,), {"files": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{server.server_port}")
    yield server.RequestHandlerClass
    server.shutdown()


def push(*arguments):
    return exit_code(program.main, ["push", *map(str, arguments)])


def test_push_uploads_the_model_and_its_card(train, hub, capsys):
    code, output = train("--epochs", "1")
    assert code == 0
    text = (output / "model" / "README.md").read_text()
    assert all(f"| {name} | 7 | 3 |" in text for name in CLASSES)
    summary = json.loads((output / "summary.json").read_text())
    row = re.search(r"\| 9 validation \| (\S+) \| (\S+) to (\S+) \|", text)
    low, high = float(row.group(2)), float(row.group(3))
    assert low <= summary["best_val_accuracy"] <= high
    header = yaml.safe_load(text.split("---")[1])
    assert header["pipeline_tag"] == "image-classification"
    assert header["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"

    assert push(output, "me/bees") == 0
    assert capsys.readouterr().out.endswith("https://huggingface.co/me/bees/commit/0\n")
    assert hub.files.pop("created")["name"] == "bees"
    assert set(hub.files) == {"README.md", "model.json", "model.safetensors"}
    for name, content in hub.files.items():
        assert content == (output / "model" / name).read_bytes(), name


def test_a_refused_upload_is_an_error(train, hub, capsys):
    _, output = train("--epochs", "1")
    capsys.readouterr()
    hub.refuse = True
    assert push(output, "me/bees") == 2
    assert "the upload to me/bees failed: " in capsys.readouterr().err
    assert push(output, "a name/of/parts") == 2
    assert "is not a repository name" in capsys.readouterr().err
    assert push(output / "plots", "me/bees") == 2
    assert "is no run" in capsys.readouterr().err


def test_a_dry_run_leaves_the_files_and_uploads_nothing(trained, tmp_path, capsys):
    folder = tmp_path / "bees"
    assert push(trained / "fast", "me/bees", "--dry-run", folder) == 0
    assert f"Nothing was uploaded. The files are in {folder}." in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.json", "model.safetensors"}
    for path in folder.iterdir():
        assert path.read_bytes() == (trained / "fast" / "model" / path.name).read_bytes()
    assert push(trained / "fast", "me/bees", "--dry-run", folder) == 2
    assert "is not empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder], "no temporary folder is left"


@pytest.mark.slow
def test_a_space_is_uploaded_with_all_that_it_needs(trained, hub, capsys):
    assert push(trained / "fast", "me/bees", "--space") == 0
    assert capsys.readouterr().out.endswith("/commit/0\n")
    created = hub.files.pop("created")
    assert (created["name"], created["type"], created["sdk"]) == ("bees", "space", "gradio")
    assert set(hub.files) == {"README.md", "app.py", "requirements.txt", "model.pt2", "model.pt2.json"}
    header, card = hub.files["README.md"].decode().removeprefix("---\n").split("\n---\n", 1)
    about = yaml.safe_load(header)
    pinned = dict(line.split("==") for line in hub.files["requirements.txt"].decode().splitlines())
    assert (about["title"], about["sdk"], about["app_file"]) == ("bees", "gradio", "app.py")
    assert about["sdk_version"] == pinned["gradio"]
    assert set(pinned) == {"gradio", "torch", "torchvision"}
    assert card.lstrip().startswith("# shufflenet")
    assert b"finetune" not in hub.files["app.py"]


@pytest.mark.slow
def test_a_torchvision_model_becomes_a_space_as_it_was_pretrained(tmp_path, capsys):
    torch.manual_seed(0)
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "a.safetensors")
    more = ("--weights", tmp_path / "a.safetensors", "--dry-run", tmp_path / "space")
    assert push("shufflenet_v2_x0_5", "me/any", *more) == 2
    assert "is pushed as a page, --space" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()
    assert push("shufflenet_v2_x0_5", "me/any", "--space", *more) == 0
    assert len(json.loads((tmp_path / "space" / "model.pt2.json").read_text())["classes"]) == 1000
    assert "with the weights in `a.safetensors`, not fine-tuned" in (tmp_path / "space" / "README.md").read_text()


def test_a_space_needs_a_model_of_pictures(tmp_path, capsys):
    write_model(tmp_path / "six", in_channels=6)
    assert push(tmp_path / "six", "me/six", "--space", "--dry-run", tmp_path / "out") == 2
    assert "takes 6 channels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
