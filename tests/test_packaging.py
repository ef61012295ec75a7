"""pyproject.toml and requirements.txt install the same, and exactly what the code imports."""

import ast
import re
import sys

from support import ROOT

from finetune.inference.export_forms import PACKAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Packages whose import has another name.
IMPORTED_AS = {"PIL": "pillow", "sklearn": "scikit-learn", "python_multipart": "python-multipart"}


def listed() -> set[str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return {line for line in lines if line}


def names(requirements: set[str] | list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements}


def test_requirements_are_the_dependencies_and_the_tools_of_the_tests():
    tools = {requirement for requirement in EXTRAS["dev"] if not requirement.startswith("pre-commit")}
    assert len(tools) >= 4
    assert listed() == {*PROJECT["dependencies"], *tools}


def test_every_package_has_a_lower_bound_and_every_requirement_a_reason():
    everything = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    assert len(everything) >= 20
    assert [one for one in everything if not re.fullmatch(r"[\w-]+>=[\d.]+", one)] == []
    reasons = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if ">=" in line]
    assert [line for line in reasons if not re.search(r"# \w", line)] == []


def test_the_code_imports_nothing_that_is_not_installed_with_it():
    found = set()
    for path in [ROOT / "train.py", *(ROOT / "finetune").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    packages = {IMPORTED_AS.get(name, name) for name in found - set(sys.stdlib_module_names) - {"finetune", "train"}}
    extras = ("check", "export", "embed", "openvino", "executorch", "hub", "demo")
    known = names(PROJECT["dependencies"]).union(*(names(EXTRAS[extra]) for extra in extras))
    assert len(packages) >= 10
    # Dependencies of wandb, used to read its login, and of fastapi and uvicorn, whose parts these are.
    assert packages - known <= {"requests", "pydantic", "h11"}
    unused = names(PROJECT["dependencies"]) - packages
    assert unused == set(), "a dependency that no module imports"


def test_python_is_the_one_that_the_linter_and_the_type_checker_assume():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert PROJECT["requires-python"] == f">={tools['mypy']['python_version']}" == ">=3.10"
    assert tools["ruff"]["target-version"] == "py310"


def test_every_export_format_has_an_extra_with_its_packages():
    for form, packages in PACKAGES.items():
        assert names(EXTRAS["export" if form == "onnx" else form]) == set(packages), form
    assert len(PACKAGES) >= 3
