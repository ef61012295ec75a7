"""Mutated files of every kind that is read: each is read, or refused by a `UserError`. No crash, no hang, no code run.

    python -m pytest -n 0 tests/hostile/test_fuzz.py                            # a fixed number, the same ones
    FUZZ_EXAMPLES=100000 python -m pytest -n 0 -s tests/hostile/test_fuzz.py    # a long run, of new ones

A kind is a row of `KINDS`: a whole file, and the reader. Examples are made here and read in a child process, so that a
decoder that crashes or hangs is noticed; the example that it read is then left in the message.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from finetune import recipes
from finetune.config.settings import Images
from finetune.data import readers, verify
from finetune.data.decode import load
from finetune.errors import UserError
from finetune.models import metadata, weights
from finetune.runtime import files
from finetune.training import saved_checkpoints

LONG = int(os.environ.get("FUZZ_EXAMPLES", 0))  # of each kind
EXAMPLES = LONG or 10
SECONDS = 10  # for one example
MEMORY = 2**30  # bytes beyond those of the process that forks
SMALL = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)


# ---- whole files -----------------------------------------------------------------------------------------------------
def image(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(SMALL).save(file, kind, **options)
    return file.getvalue()


def arrays() -> dict[str, np.ndarray]:
    return {"x_train": np.stack([SMALL] * 6), "y_train": np.arange(6) % 2}


def npz(compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays())
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, arrays()["x_train"])
    return file.getvalue()


def pth() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, file)
    return file.getvalue()


def config() -> bytes:
    recipe = recipes.from_settings("finetune", {"weights": "none", "hidden": [8, 4]})
    from finetune.reporting import records

    return json.dumps(records.settings(recipe)).encode()


def model_json() -> bytes:
    known = {"format": 2, "classes": ["a", "b"], "score": {"epoch": 1}, "model": "resnet18", "weights": "none"}
    known |= {"head": "linear", "hidden": [512], "dropout": 0.5, "head_batchnorm": False, "pool_size": None}
    known |= {"in_channels": 3, "first_layer": "sum", "image_size": None}
    transform = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3}
    return json.dumps(known | {"preprocess": transform}).encode()


SUMS = "".join(f"{k:064x}  {name}\n" for k, name in enumerate(("a.json", "b.safetensors"))).encode()
CSV = b'path,label,split\na.jpg,ant,train\nb.jpg,bee,train\n"c,.jpg",ant,val\nd.jpg,bee,val\n'
LAUNCH = b"compute_environment: LOCAL_MACHINE\nnum_processes: 2\nmixed_precision: 'no'\nuse_cpu: false\n"


# ---- readers ---------------------------------------------------------------------------------------------------------
def read_image(path: Path) -> None:
    """What passes the check decodes in training, in colour and in grey."""
    if verify.undecodable([str(path)]) == {}:
        for channels in (3, 1):
            assert load(str(path), channels).shape[0] == channels
    else:
        load(str(path), 3)


def read_weights(path: Path) -> None:
    weights.read("resnet18", str(path))


def read_data(path: Path) -> None:
    readers.read(Images(data=str(path)), 3, seed=0)


def read_folder(path: Path) -> None:
    np.save(path.with_name("y_train.npy"), arrays()["y_train"])
    read_data(path.parent)


def read_sums(path: Path) -> None:
    files.damage(path.parent)


def read_state(path: Path) -> None:
    """The content of a checkpoint's state.json, with checksums that fit."""
    folder = path.parent / "checkpoints" / "0000-00000002"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_bytes(path.read_bytes())
    (folder / files.SUMS).unlink(missing_ok=True)
    files.write_sums(folder, {})
    saved_checkpoints.find(folder.parent)


def state_json() -> bytes:
    state = {"epoch": 0, "step": 2, "history": [], "best": None, "epochs": 3, "accumulate": 1, "tracker": ""}
    state |= {"run_clock": 1.0, "epoch_clock": 1.0}
    content = {"format": saved_checkpoints.FORMAT, "state": state, "sums": [[1.0, 2.0, 3.0]], "rates": [0.1]}
    content |= {"settings": {"epochs": 3, "versions": {}, "threads": 1, "image_sizes": ""}}
    return json.dumps(content | {"preprocess": json.loads(model_json())["preprocess"]}).encode()


def read_launch(path: Path) -> None:
    """A launch config: Accelerate's reader is YAML's safe one, which makes no objects."""
    try:
        yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(str(error)) from error


KINDS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "JPEG": ("x.jpg", image("JPEG"), read_image),
    "progressive JPEG": ("x.jpg", image("JPEG", progressive=True), read_image),
    "PNG": ("x.png", image("PNG"), read_image),
    "WebP": ("x.webp", image("WEBP"), read_image),
    "TIFF": ("x.tiff", image("TIFF"), read_image),
    "compressed TIFF": ("x.tiff", image("TIFF", compression="tiff_lzw"), read_image),
    "BMP": ("x.bmp", image("BMP"), read_image),
    "PPM": ("x.ppm", image("PPM"), read_image),
    "GIF": ("x.png", image("GIF"), read_image),
    "safetensors": ("x.safetensors", save({"weight": torch.ones(3, 2)}), read_weights),
    "pth": ("x.pth", pth(), read_weights),
    "npz": ("x.npz", npz(compressed=False), read_data),
    "compressed npz": ("x.npz", npz(compressed=True), read_data),
    "npy": ("x_train.npy", npy(), read_folder),
    "CSV": ("x.csv", CSV, read_data),
    "model.json": ("model.json", model_json(), lambda path: metadata.read(path.parent)),
    "config.json": ("config.json", config(), lambda path: recipes.from_config(files.read_json(path))),
    "state.json": ("state.json", state_json(), read_state),
    "SHA256SUMS": ("SHA256SUMS", SUMS, read_sums),
    "launch config": ("x.yaml", LAUNCH, read_launch),
}  # fmt: skip


# ---- examples --------------------------------------------------------------------------------------------------------
WORDS = [
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 3000,
    b"9" * 400,
    b"../",
    b"__import__",
]


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes changed, deleted, doubled or put in, or cut."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        how = draw(st.sampled_from(["set", "flip", "delete", "double", "insert", "cut"]))
        count = draw(st.integers(1, 16))
        if how == "set":
            found[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "flip":
            found[at : at + 1] = bytes(byte ^ 1 << count % 8 for byte in found[at : at + 1])
        elif how == "delete":
            del found[at : at + count]
        elif how == "double":
            found[at:at] = found[at : at + count]
        elif how == "insert":
            found[at:at] = draw(st.sampled_from(WORDS))
        else:
            del found[at:]
    return bytes(found)


# ---- the reading process ---------------------------------------------------------------------------------------------
class Reader:
    """A child process that reads files; another takes its place when one crashes or hangs."""

    def __init__(self, read: Callable[[Path], object], path: Path) -> None:
        self.read, self.path = read, path
        self.start()

    def start(self) -> None:
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=self._serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def _serve(self, pipe: Connection) -> None:
        os.chdir(self.path.parent)
        sys.addaudithook(_no_code)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        while True:
            pipe.recv()
            try:
                self.read(self.path)
                pipe.send("")
            except UserError as error:
                pipe.send("" if str(error) else "an empty message")
            except BaseException:
                pipe.send(traceback.format_exc())

    def __call__(self, content: bytes) -> str:
        """Read a file of this content; what went wrong, else empty."""
        self.path.write_bytes(content)
        try:
            self.pipe.send(None)
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            problem = f"no answer in {SECONDS} s"
        except (EOFError, OSError):
            self.process.join()
            problem = f"the process ended with {self.process.exitcode}"
        self.process.kill()
        self.start()
        return problem

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _no_code(event: str, arguments: tuple[object, ...]) -> None:
    """Raise for whatever would run a program or code from a file."""
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
        if event == "pickle.find_class" and str(arguments[0]).startswith(("torch", "collections")):
            return  # torch's restricted unpickler checks it next
        raise AssertionError(f"a file ran code: {event} {arguments}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_is_read_or_refused(kind, tmp_path):
    name, whole, read = KINDS[kind]
    reader, seen = Reader(read, tmp_path / name), 0

    @settings(max_examples=EXAMPLES, derandomize=not LONG, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(mutated(whole))
    def examples(content: bytes) -> None:
        nonlocal seen
        seen += 1
        problem = reader(content)
        assert not problem, f"{problem}\n{kind}: {content!r}"

    try:
        examples()
    finally:
        reader.end()
    assert seen >= EXAMPLES
    print(f"{kind}: {seen} examples")
