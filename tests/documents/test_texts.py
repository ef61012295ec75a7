"""Links, files, flags and packages that the documents name exist."""

import re
from pathlib import Path

import pytest
from documented import ARCHITECTURE, DOCUMENTS, RUN_FROM, TEXTS, call
from support import ROOT
from test_imports import ORDER

from finetune import __main__ as program
from finetune import recipes

TABLE = re.findall(r"^\| `([\w.]+?)(?:/|\.py)` \|([^|]*)\|", TEXTS[ARCHITECTURE], re.M)


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown viewer makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    seen = 0
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, anchor = target.partition("#")
            there = path.parent / name if name else path
            assert there.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{path.name}: {target}"
            seen += 1
    assert seen >= 25


def test_every_document_is_linked_from_the_readme():
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([\w./]+)", TEXTS[ROOT / "README.md"])}
    assert set(DOCUMENTS) - linked == {ROOT / "README.md"}


def test_every_file_in_the_texts_exists():
    pattern = r"`((?:launch|docs|tests|finetune|benchmarks)/[\w./-]*|[\w-]+\.(?:toml|txt|md)|train\.py|\.ci/run)`"
    seen = 0
    for path, text in TEXTS.items():
        if path.name == "CHANGELOG.md":  # it names removed files too
            continue
        for name in re.findall(pattern, text.partition("\n## Add a ")[0]):  # the guides make new files
            assert (ROOT / name).exists(), f"{path.name}: {name}"
            seen += 1
    assert seen >= 20


def test_every_flag_in_the_texts_exists(capsys):
    known = {"--array", "--machine_rank", "--mixed_precision"}  # of sbatch and Accelerate
    with pytest.raises(SystemExit):
        recipes.from_command_line(["--help"])
    for name in program.COMMANDS:
        assert call([name, "--help"]) == 0
    known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    seen = set()
    for path in RUN_FROM:
        for flag in re.findall(r"`(--[\w-]+)", TEXTS[path]):
            assert flag in known, f"{path.name}: {flag}"
            seen.add(flag)
    assert len(seen) >= 40


def test_the_architectures_table_lists_the_packages_in_the_order_of_imports():
    packages = [package for package, _ in TABLE]
    assert packages == [package for package in ORDER if package not in ("__init__", "__main__", "train")]


def test_the_architectures_table_names_every_module():
    listed_all = 0
    for package, cell in TABLE:
        modules = {path.stem for path in (ROOT / "finetune" / package).glob("*.py")} - {"__init__"}
        in_cell = re.findall(r"`(\w+)`", cell)
        assert len(in_cell) == len(set(in_cell))
        assert set(in_cell) == modules or "one each" in cell, package
        listed_all += len(in_cell)
    assert listed_all >= 50
    readers = {path.stem for path in (ROOT / "finetune" / "data" / "readers").glob("*.py")} - {"__init__"}
    (line,) = re.findall(r"^`data/readers/` has (.*?)\.", TEXTS[ARCHITECTURE], re.M)
    assert set(re.findall(r"`(\w+)`", line)) == readers
