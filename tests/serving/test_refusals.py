"""The HTTP interface refuses with a reason what is no picture, too much, or another site's."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from serving_client import assert_plain, form

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from finetune.serving import images, uploads


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
    assert running.talk([head + body]).startswith(b"HTTP/1.1 413 ")


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
