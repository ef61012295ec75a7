"""The direction of imports: `train.py` on top, `recipe`, `archs` and `errors` at the bottom."""

import ast
from pathlib import Path

from conftest import ROOT

# A module may import what stands in a row below its own, and its neighbours.
LAYERS = (
    {"train", "__main__", "commands", "api"},
    {"reporting", "inference", "lr_find"},
    {"plan", "tracking", "tracker", "plots", "artifact", "terminal", "resume", "export", "card"},
    {"charts", "runs", "media"},
    {"analysis"},
    {"evaluate", "checkpoint", "durable", "feeds", "cache"},
    {"pixels"},
    {"frontier", "store"},
    {
        "surgery",
        "freezing",
        "groups",
        "schedule",
        "data",
        "samples",
        "loss",
        "ema",
        "hardware",
        "convolution",
        "heads",
        "recipes",
        "noise",
        "signals",
    },
    {"checks", "imagesets", "folders", "tables", "arrays", "named", "starter"},
    {"recipe", "archs", "errors", "checked", "entry", "launcher", "limits", "beside", "figures", "palette", "helptext"},
)


def imported(path: Path) -> set[str]:
    """Names of our own modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            _, *rest = node.module.split(".")
            names |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "train":
            names.add("train")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name == "train"}
    return names


def test_imports_run_one_way():
    files = [ROOT / "train.py", *(ROOT / "finetune").rglob("*.py")]
    level = {name: k for k, layer in enumerate(LAYERS) for name in layer}
    seen = 0
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = parts[1] if parts[0] == "finetune" else parts[0]
        if name == "__init__":
            continue
        seen += 1
        assert name in level, f"{path.name} is in no layer"
        for other in imported(path) - {name}:
            assert level[other] >= level[name], f"{name} imports {other}"
    assert seen >= len(level)


def test_the_bottom_imports_none_of_ours_but_the_error():
    for name in ("recipe", "archs", "errors"):
        assert imported(ROOT / "finetune" / f"{name}.py") <= {"errors"}


def test_train_is_one_function_without_a_class():
    tree = ast.parse((ROOT / "train.py").read_text())
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)] == ["main"]
