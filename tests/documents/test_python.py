"""Every line of Python in the documents runs, and every request to a server.

The guides at the end of docs/architecture.md have tests of their own, such as test_extension_guide.py.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from documented import SERVER, call, of_kind, python_blocks, run
from serving_client import serve
from support import ROOT

from finetune.inference.export_forms import PACKAGES


def execute(chosen: list[tuple[Path, str]], capsys: pytest.CaptureFixture[str]) -> dict[Path, dict]:
    """Run the blocks, those of one document one after the other, on a run with its exports; the names that they set."""
    for line in of_kind("commands"):
        form = re.search(r"export RUN --format (\S+)", line)
        if "embed" in line and "--picture" not in line:
            assert call(shlex.split(line)[3:]) == 0, capsys.readouterr().err
        if form and (form.group(1) not in PACKAGES or any(form.group(1) in block for _, block in chosen)):
            assert call(shlex.split(line)[3:]) == 0, capsys.readouterr().err
    seen: dict[Path, dict] = {}
    for path, block in chosen:
        exec(block, seen.setdefault(path, {}))
    return seen


@pytest.mark.slow
def test_every_line_of_python_runs(checkout, capsys):
    apart = (SERVER, *PACKAGES)
    chosen = [(path, block) for path, block in python_blocks() if not any(word in block for word in apart)]
    assert len(chosen) == len(python_blocks()) - len(apart) >= 7
    using = execute(chosen, capsys)[ROOT / "docs" / "using.md"]
    model = using["model"]
    assert model.fc.out_features == 3
    image = using["transform"](using["Image"].open("image.jpg").convert("RGB"))[None]
    assert (model(image) - using["logits"]).abs().max() < 1e-4, "two exports of one model"


@pytest.mark.slow
@pytest.mark.parametrize("form", PACKAGES)
def test_the_lines_for_other_runtimes_run(checkout, capsys, form):
    for name in PACKAGES[form]:
        pytest.importorskip(name)
    others = PACKAGES.keys() - {form}
    chosen = [block for block in python_blocks() if block[0].name == "using.md"]
    chosen = [(path, block) for path, block in chosen if not any(other in block for other in others)]
    assert len(chosen) >= 7
    names_set = execute(chosen, capsys)[ROOT / "docs" / "using.md"]
    assert names_set["logits"].shape == (1, 3)


def test_the_requests_to_a_server_are_answered(checkout, capsys):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    with serve(checkout / "RUN") as running:
        ours = f"127.0.0.1:{running.port}"
        for line in of_kind("requests to a server"):
            done = run(f"{line.replace(SERVER, ours)} --silent --fail", checkout)
            assert done.returncode == 0, line
            answer = json.loads(done.stdout)
            assert len(answer["predictions"]) == line.count("image.jpg"), line
        (block,) = [block for _, block in python_blocks() if SERVER in block]
        exec(block.replace(SERVER, ours), {})
        first = answer["predictions"][0]
        assert capsys.readouterr().out == f"{first['class']} {first['probability']} {answer['version']}\n"
