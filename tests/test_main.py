"""`python -m finetune`: its help, and the message for a mistake."""

import re
import subprocess
import sys

import pytest
from support import ROOT, write_images

from finetune import __main__ as program


def test_help_names_every_command_and_imports_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "finetune", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "finetune.errors" in shown.stderr
    assert not re.search(r"\b(torch|matplotlib)$", shown.stderr, re.MULTILINE)
    assert all(name in shown.stdout for name in program.COMMANDS)
    for name in program.COMMANDS:
        assert (ROOT / "finetune" / "commands" / f"{name}.py").exists(), name
    code = "import sys; from finetune.commands import predict; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_each_commands_help_names_its_arguments(capsys):
    shown = {}
    for name in program.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            program.main([name, "--help"])
        assert ended.value.code == 0
        shown[name] = capsys.readouterr().out
    assert len(shown) == 12
    assert [name for name, text in shown.items() if not re.search(r"\bRUN\b", text)] == ["cache"]
    assert "IMAGE ..." in shown["predict"]


def test_a_mistake_prints_one_message_exits_with_2_and_writes_nothing(trained, call, tmp_path, image_folder):
    image = image_folder / "val" / "red" / "00.jpg"
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "dogs", 2, ("cat", "dog"))
    run = trained / "fast"
    cases = [
        (("predicte", run), "Did you mean predict"),
        (("predict", tmp_path / "unfinished", image), "has not finished an epoch"),
        (("predict", tmp_path / "nowhere", image), "does not exist"),
        (("predict", image_folder, image), "is no run"),
        (("predict", run, tmp_path / "empty"), "holds no image"),
        (("predict", run, f"{tmp_path}/*.gif"), "nothing matches"),
        (("predict", run, image, "--topk", "0"), "--topk"),
        (("predict", run, image, "--json", "--csv"), "choose one"),
        (("predict", run, image, "--precision", "fp16"), "needs a GPU"),
        (("predict", run, image, "--grid", tmp_path / "a" / "b.png"), "no folder"),
        (("evaluate", tmp_path / "empty"), "is no run"),
        (("evaluate", run, "--data", tmp_path / "dogs"), "the classes do not match: the model does not know cat, dog"),
        (("evaluate", run, "--split", "test"), "--split test"),
        (("evaluate", run / "model", "--data", tmp_path / "nowhere"), "does not exist"),
        (("plot", tmp_path / "unfinished"), "has not finished an epoch"),
        (("plot", tmp_path / "empty"), "is no run"),
        (("export", tmp_path / "empty", "--format", "onnx"), "is no run"),
        (("export", run, "--format", "state-dict", "--output", tmp_path / "a" / "b.pth"), "no folder"),
        (("export", run, "--format", "state-dict", "--images", tmp_path / "empty"), "holds no image"),
        (("compare", run), "two runs or more"),
        (("compare", run, tmp_path / "unfinished"), "has not finished an epoch"),
        (("compare", run, tmp_path / "empty"), "is no run"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, out, err = call(*arguments)
        assert code == 2, arguments
        assert message in err, arguments
        assert out == "", arguments
        assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert sorted(tmp_path.rglob("*")) == before
