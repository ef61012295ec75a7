"""The house's shape, read from the source: which package imports which, no circles, short parameter lists."""

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from support import ROOT

# Each package or module of `finetune` may import those before it, and itself.
ORDER = (
    *("errors", "runtime", "config", "starter", "recipes", "models", "data", "audit"),
    *("training", "features", "reporting", "inference", "serving", "commands", "api", "__init__", "__main__", "train"),
)
HEAVY = {"torch", "torchvision", "accelerate", "torchmetrics", "wandb", "matplotlib"}  # seconds to import


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in [ROOT / "train.py", *sorted((ROOT / "finetune").rglob("*.py"))]}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def run_nodes(node: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """The nodes that run, type checking aside; with `functions`, also those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef) and not functions:
            continue
        yield child
        yield from run_nodes(child, functions)


def imports(module: str, functions: bool = True) -> set[str]:
    """The full names that a module imports: of ours the modules, of others the packages."""
    found: set[str] = set()
    for node in run_nodes(tree(module), functions):
        if isinstance(node, ast.Import):
            found |= {alias.name if alias.name in MODULES else alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module if node.module in MODULES else
                          node.module.partition(".")[0])  # fmt: skip
    return found - {module}


def ours(module: str) -> set[str]:
    return imports(module) & MODULES.keys()


def package(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if rest else "__init__" if first == "finetune" else first


def test_the_order_names_every_package():
    assert {package(module) for module in MODULES} == set(ORDER)
    assert len(MODULES) >= 80


def test_packages_import_one_way():
    wrong, seen = [], 0
    for module in MODULES:
        for other in ours(module):
            seen += 1
            if ORDER.index(package(other)) > ORDER.index(package(module)):
                wrong.append(f"{module} imports {other}")
    assert wrong == []
    assert seen >= 200


def test_no_modules_form_a_circle():
    order = list(graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).static_order())
    assert set(order) == MODULES.keys()


def test_no_function_takes_more_than_seven_parameters():
    wrong, seen = [], 0
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            seen += 1
            if len(names) - (names[:1] in (["self"], ["cls"])) > 7:
                wrong.append(f"{module}.{node.name}")
    assert wrong == []
    assert seen >= 300


# ---- late imports ----------------------------------------------------------------------------------------------------
def at_the_top(module: str) -> set[str]:
    """Everything that is imported when a module is: by it, by what it imports and by the packages around it."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += imports(name, functions=False)
            around = name.rpartition(".")[0]
            waiting += [around] if around in MODULES else []
    return seen


def test_what_promises_not_to_import_torch_does_not():
    promises = [
        name for name in MODULES if re.search(r"Nothing\s+here\s+imports\s+torch", ast.get_docstring(tree(name)))
    ]
    assert len(promises) >= 10
    for name in promises:
        for inner in [one for one in MODULES if one == name or one.startswith(f"{name}.")]:
            assert at_the_top(inner) & HEAVY <= {"matplotlib"}, inner


def test_mistakes_in_settings_and_images_are_reported_before_torch_is_imported():
    assert at_the_top("train") & HEAVY == set()
    assert "finetune.config.bounds" in at_the_top("train")
    assert "finetune.data.readers.image_folder" in at_the_top("finetune.data.readers")
    assert at_the_top("finetune.data.readers") & HEAVY == set()
    source = MODULES["train"].read_text()
    assert (
        0
        < source.index("from finetune.data import readers")
        < source.index("readers.read(")
        < source.index("import torch\n")
    )
    for name in MODULES:
        if package(name) in ("errors", "config", "starter", "recipes", "__main__", "__init__"):
            assert at_the_top(name) & HEAVY == set(), name


def test_every_command_reads_its_options_before_heavy_imports():
    commands = [name for name in MODULES if name.startswith("finetune.commands")]
    assert len(commands) >= 8
    for name in commands:
        assert at_the_top(name) & HEAVY == set(), name


def test_train_has_one_function():
    functions = [node.name for node in ast.walk(tree("train")) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert functions == ["main"]
