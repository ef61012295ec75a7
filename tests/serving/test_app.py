"""The HTTP interface: its answers are `predict`'s, and what is wrong gets a reason."""

import base64
import io
import json
import re
import socket
import struct
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from serving_client import form

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from finetune.serving import images, served, server, uploads


@pytest.fixture
def files(image_folder):
    return [path.read_bytes() for path in sorted((image_folder / "val").rglob("*.jpg"))]


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


# ---- what is refused -------------------------------------------------------------------------------------------------
def encoded(kind: str, frames: int = 1, size: tuple[int, int] = (40, 40)) -> bytes:
    pictures = [Image.fromarray(np.full((*size[::-1], 3), 40 * k, np.uint8)) for k in range(frames)]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(file, kind, **more)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG of that size with next to no content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
BAD = {
    "no image": (b"no image at all", 415, "no image that can be read"),
    "SVG": (SVG, 415, "no image that can be read"),
    "HTML": (b"<!doctype html><img onerror=alert(1)>", 415, "no image that can be read"),
    "PDF": (b"%PDF-1.7\n" + b"0" * 500, 415, "no image that can be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no image that can be read"),
    "GIF": (encoded("GIF", 3), 415, "no image that can be read"),
    "animated PNG": (encoded("PNG", 3), 415, "animated"),
    "animated WebP": (encoded("WEBP", 3), 415, "animated"),
    "half a JPEG header": (encoded("JPEG")[:30], 422, "damaged"),
    "half a PNG": (encoded("PNG", size=(200, 200))[:150], 422, "damaged"),
    "bomb of 10 gigapixels": (png_of(100_000, 100_000), 413, "megapixels"),
    "bomb of 100 megapixels": (png_of(10_000, 10_000), 413, "megapixels"),
    "one line of pixels": (png_of(40_000, 1), 413, "megapixels"),
    "no width": (png_of(0, 10), (415, 422), "image"),
    "too many bytes": (encoded("PNG") + b"\0" * uploads.MAX_FILE, 413, "16 MiB"),
    "empty": (b"", 400, "no image"),
}


def assert_plain(answer) -> None:
    """Assert that an answer is a reason in JSON which tells nothing of the server."""
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    assert not any(word in answer.text for word in ("Traceback", "site-packages", "/tmp", "object at 0x", ".py"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_gets_a_reason_and_the_server_goes_on(running, files):
    seen = 0
    for name, (data, status, words) in BAD.items():
        for answer in (running.upload(data), running.send("POST", "/predict", data, Content_Type="image/jpeg")):
            assert answer.status in (status if isinstance(status, tuple) else (status,)), name
            assert words in answer.json["error"], name
            assert_plain(answer)
            seen += 1
    assert seen == 32
    answer = running.upload(files[0], b"no image", files[1])
    assert (answer.status, answer.json["error"][:8]) == (415, "file 2: ")
    assert running.upload(files[0]).status == 200


def test_a_jpeg_that_decodes_over_and_over_is_refused(running, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    usual = encoded("JPEG")
    assert running.upload(usual).status == 200
    assert running.upload(usual + b"\xff\xda" * 30).status == 413


def test_names_of_files_are_neither_used_nor_logged(running, files):
    names = ("../../../etc/passwd", "/etc/passwd", "..\\\\x.jpg", "<img onerror=alert(1)>.jpg")
    before = len(running.log)
    for name in names:
        answer = running.upload(files[0], name=name)
        assert answer.status == 200
        assert set(answer.json) == {"run", "version", "predictions"}
    lines = running.log[before:]
    assert len(lines) == len(names)
    assert all(re.fullmatch(rf"{len(files[0])} bytes  blue [01]\.\d{{3}}  \d+ ms", line) for line in lines)


def test_forms_are_refused_that_are_none_or_too_many(running, files):
    kind = "multipart/form-data; boundary=xx"
    cases = (
        (form(*[files[0]] * (uploads.MAX_FILES + 1)), kind, 400, "Too many files"),
        (
            b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 5000 + b"--xx--\r\n",
            kind,
            400,
            "Too many",
        ),
        (form(files[0]), "multipart/form-data", 400, "boundary"),
        (b"nonsense", kind, 400, "form"),
        (b"", kind, 400, "no image"),
        (files[0], "application/x-www-form-urlencoded", 415, "multipart/form-data"),
        (b"{}", "application/json", 415, "multipart/form-data"),
    )
    for body, content_type, status, words in cases:
        answer = running.send("POST", "/predict", body, Content_Type=content_type)
        assert answer.status == status, words
        assert words in answer.json["error"]
        assert_plain(answer)
    answer = running.send("POST", "/predict", b"", Content_Type=kind, Content_Length=str(10**12))
    assert (answer.status, answer.json["error"]) == (413, "the request is larger than 32 MiB.")


def test_a_body_without_a_length_is_limited_too(running, files, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BODY", len(files[0]) - 1)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(files[0]), files[0])
    assert talk(running.port, [head + body], 0).startswith(b"HTTP/1.1 413 ")


def test_wrong_methods_and_addresses_get_a_reason(running):
    cases = (("PUT", "/predict", 405), ("GET", "/predict", 405), ("DELETE", "/model", 405), ("GET", "/nothing", 404),
             ("GET", "/../../etc/passwd", 404), ("POST", "/predict?run=none", 404), ("GET", "/docs", 404),
             ("OPTIONS", "/predict", 405))  # fmt: skip
    for method, path, status in cases:
        answer = running.send(method, path)
        assert answer.status == status, (method, path)
        assert_plain(answer)
    assert len(cases) == 8


def test_other_hosts_and_other_sites_pages_are_refused(running, files):
    for host in ("evil.example", "localhost.evil.example", "169.254.169.254", "", "[::1"):
        answer = running.upload(files[0], Host=host)
        assert (answer.status, "--allow-host" in answer.json["error"]) == (403, True), host
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "Demo.Example", f"localhost:{running.port}"):
        assert running.upload(files[0], Host=host).status == 200, host
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1"):
        answer = running.upload(files[0], Origin=origin)
        assert (answer.status, "other sites" in answer.json["error"]) == (403, True), origin
    answer = running.upload(files[0], Origin=f"http://127.0.0.1:{running.port}")
    assert answer.status == 200
    assert not any(name.lower().startswith("access-control") for name in answer.headers)
    assert "default-src 'none'" in answer.headers["content-security-policy"]


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


def talk(port: int, parts, pause: float) -> bytes:
    """Send parts with a pause after each until the server closes the connection; what it answered."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
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
        answer = talk(running.port, parts, pause)
        assert status in answer.partition(b"\r\n")[0] or (name == "endless header" and not answer), name
        assert time.monotonic() - began < 5, name
    assert len(cases) == 6
    assert running.upload(files[0]).status == 200


def test_idle_connections_do_not_keep_others_out_for_long(running, files, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(server, "ARRIVAL_SECONDS", 0.3)
    idle = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
    time.sleep(0.1)
    refused = running.send("GET", "/health")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    time.sleep(0.5)
    assert running.send("GET", "/health").status == 200
    for connection in idle:
        connection.close()
