"""The HTTP interface: its answers are `predict`'s, also under load."""

import base64
import io
import json
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from serving_client import assert_plain

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from finetune.serving import served, server, uploads


@pytest.fixture
def expected(run, call, image_folder):
    """The rows of `predict --json` for the same files."""
    code, out, _ = call("predict", run, image_folder / "val", "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def probabilities(prediction: dict) -> dict[str, float]:
    return {one["class"]: one["probability"] for one in prediction["top"]}


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_the_answers_are_those_of_predict_however_many_visitors_there_are(running, files, expected):
    together = running.upload(*files).json["predictions"]
    raw = [running.send("POST", "/predict", data, Content_Type="image/jpeg").json["predictions"][0] for data in files]
    with ThreadPoolExecutor(9) as visitors:
        alone = [answer.json["predictions"][0] for answer in visitors.map(running.upload, files)]
    seen, best = 0, {round(row["probability"], 3) for row in expected}
    assert len(best) >= 5, "the model tells the images apart"
    for row, *found in zip(expected, together, raw, alone, strict=True):
        for one in found:
            assert probabilities(one) == pytest.approx(probabilities(row), abs=1e-6)
            assert one["class"] == row["class"] == one["top"][0]["class"]
            seen += 1
    assert seen == 27


def test_topk_limits_the_classes(running, files):
    (prediction,) = running.upload(files[0], path="/predict?topk=2").json["predictions"]
    assert len(prediction["top"]) == 2
    assert "topk" in running.upload(files[0], path="/predict?topk=0").json["error"]


def test_an_explanation_is_a_picture_of_the_models_input(running, files, expected):
    answer = running.upload(files[0], path=f"/explain?class={expected[0]['class']}").json
    picture = Image.open(io.BytesIO(base64.b64decode(answer["image"].removeprefix("data:image/png;base64,"))))
    assert picture.size == (32, 32)
    assert (answer["class"], answer["run"]) == (expected[0]["class"], "colours")
    assert "cells" in answer["method"]
    others = [name for name in ("blue", "green", "red") if name != answer["class"]]
    assert all(
        running.upload(files[0], path=f"/explain?class={name}").json["image"] != answer["image"] for name in others
    )
    one, two, none = files[:1], files[:2], [b"x"]
    wrong = (("?class=none", one, 404), ("", one, 422), ("?class=red", two, 400), ("?class=red", none, 415))
    for query, sent, status in wrong:
        assert_plain(refused := running.upload(*sent, path=f"/explain{query}"))
        assert refused.status == status


def test_the_model_is_described_and_named_by_its_weights(running, run, files):
    (model,) = running.send("GET", "/model").json["models"]
    about = json.loads((run / "model" / "model.json").read_text())
    assert (model["run"], model["model"]) == ("colours", "shufflenet_v2_x0_5")
    assert (model["classes"], model["score"]) == (about["classes"], about["score"])
    assert model["card"].startswith("# shufflenet\\_v2_x0_5, fine-tuned on") or model["card"].startswith("# shufflenet")
    assert running.upload(files[0]).json["version"] == model["version"]
    assert running.send("GET", "/health").json == {"status": "ok", "waiting": 0}


def test_the_interface_is_described_by_openapi(running):
    described = running.send("GET", "/openapi.json").json
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) >= {"/predict", "/model", "/health", "/examples"}
    request = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(request) == {"multipart/form-data", "image/*"}
    assert "503" in described["paths"]["/predict"]["post"]["responses"]


def test_the_examples_are_the_runs_validation_images(running, expected, files):
    examples = running.send("GET", "/examples").json["examples"]
    assert len(examples) == 9
    for example in examples:
        content = running.send("GET", f"/{example['image']}")
        assert content.headers["content-type"] == "image/jpeg"
        (row,) = [row for row, data in zip(expected, files, strict=True) if data == content.content]
        assert (row["class"], row["path"].split("/")[-2]) == (example["predicted"], example["true"])
    wrong = [example["true"] != example["predicted"] for example in examples]
    assert wrong == sorted(wrong, reverse=True), "wrong ones come first"
    assert running.send("GET", "/examples/99").status == 404
    assert running.send("GET", "/examples/..%2f..%2fconfig.json").status in (404, 422)


# ---- load ------------------------------------------------------------------------------------------------------------
def test_above_the_capacity_a_visitor_is_told_to_come_again(running, files, monkeypatch):
    for place, name in ((served, "CAPACITY"), (uploads, "MAX_HELD")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, 2)
            answer = running.upload(*files[:3])
        assert (answer.status, answer.headers["retry-after"]) == (503, "1"), name
        assert_plain(answer)
    assert running.upload(*files[:3]).status == 200
    assert running.send("GET", "/health").json["waiting"] == 0


def test_no_upload_reaches_the_disk(running, monkeypatch):
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda _: pytest.fail("written to disk"))
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    assert len(file.getvalue()) > 2**22
    assert running.upload(file.getvalue()).status == 200


def endless(first: bytes, rest: bytes):
    yield first
    for _ in range(500):
        yield rest
    raise AssertionError("the server went on reading")


def test_slow_and_endless_requests_end(running, files, monkeypatch):
    monkeypatch.setattr(uploads, "SECONDS", 0.2)
    monkeypatch.setattr(server, "ARRIVAL_SECONDS", 0.4)
    post = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    cases = {
        "slow headers": (endless(b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"), 0.02, b" 408 "),
        "no request": (iter([b""]), 0, b" 408 "),
        "slow body": (endless(post + b"Content-Length: 1000\r\n\r\n", b"x"), 0.02, b" 408 "),
        "endless body": (endless(post + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 0.02, b" 408 "),
        "endless header": (endless(b"GET /health HTTP/1.1\r\nX: ", b"y" * 65536), 0, b" 400 "),
        "no HTTP": (iter([b"\x16\x03\x01 hello\r\n\r\n"]), 0, b" 400 "),
    }
    for name, (parts, pause, status) in cases.items():
        began = time.monotonic()
        answer = running.talk(parts, pause)
        assert status in answer.partition(b"\r\n")[0] or (name == "endless header" and not answer), name
        assert time.monotonic() - began < 20, name
    assert len(cases) == 6
    assert running.upload(files[0]).status == 200


def test_idle_connections_do_not_keep_others_out_for_long(running, files, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(server, "ARRIVAL_SECONDS", 1.5)
    idle = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
    time.sleep(0.1)
    refused = running.send("GET", "/health")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    time.sleep(2)
    assert running.send("GET", "/health").status == 200
    for connection in idle:
        connection.close()
