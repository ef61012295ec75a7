"""Every command in the documents runs. What needs a cluster or a download is checked by the names in it."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from documented import COMMANDS, KIND_OF, KINDS, blocks, call, of_kind, run
from support import ROOT
from test_packaging import EXTRAS, listed, names

from finetune import __main__ as program
from finetune import recipes
from finetune.commands import demo, push
from finetune.config.command_line import parse
from finetune.inference.export_forms import PACKAGES


def test_every_command_is_of_a_kind_that_a_test_checks():
    assert [command for command, kind in KIND_OF.items() if kind is None] == []
    assert len(COMMANDS) == sum(len(of_kind(kind)) for kind in KINDS) >= 75


def test_the_readmes_two_commands_are_the_whole_set_up():
    first, second = blocks(ROOT / "README.md", "bash")[:2]
    assert first == "pip install -r requirements.txt && accelerate launch train.py --recipe feature_extractor\n"
    assert second == "pip install -r requirements.txt && python -m pytest\n"
    assert "\npython -m pytest\n" in (ROOT / ".ci" / "run").read_text(), "CI calls the README's test command"


def test_the_extras_in_commands_exist():
    lines = of_kind("set-up")
    for line in lines:
        extras = re.findall(r'pip install -e "\.\[([\w,]+)\]"', line)
        assert extras or line == "pre-commit install", line
        assert all(extra in EXTRAS for group in extras for extra in group.split(",")), line
    assert len(lines) >= 4
    assert (ROOT / ".pre-commit-config.yaml").is_file()


def test_the_tests_and_tools_in_commands_exist():
    markers = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.M)
    tests, tools = of_kind("tests"), of_kind("tools")
    for line in tests:
        words = shlex.split(line)
        for before, word in pairwise(words):
            assert not word.startswith("tests/") or (ROOT / word).is_file(), line
            assert before != "-m" or word in ("pytest", *markers), line
    for line in tools:
        word = line.split()[0]
        assert (ROOT / word).is_file() or word in names(listed()), line
    assert {"ruff check .", "ruff format --check ."} <= set(tools)
    assert len(tests) + len(tools) >= 11


def test_commands_for_gpus_clusters_and_trackers_name_what_exists():
    lines = of_kind("GPUs, clusters, trackers")
    for line in lines:
        words = shlex.split(line)
        for word in words:
            assert not word.startswith("launch/") or (ROOT / word).is_file(), line
        named = [word for before, word in pairwise(words) if before == "--recipe"]
        if "compare_recipes.sh" in line:
            named = words[1 : words.index("--")]
        assert named or words[0] == "wandb", line
        assert set(named) <= set(recipes.NAMES), line
    assert len(lines) >= 10


# ---- after training --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_command_on_a_run_runs(checkout, capsys):
    apart = rf" push | bench |--picture|--format ({'|'.join(PACKAGES)})"
    lines = [line for line in of_kind("commands") if not re.search(apart, line)]
    for line in lines:
        assert call(shlex.split(line)[3:]) == 0, (line, capsys.readouterr().err)
    assert len(lines) >= 15
    assert {shlex.split(line)[3] for line in lines} == set(program.COMMANDS) - {"push", "bench", "demo"}


@pytest.mark.slow
def test_the_benchmark_of_exports_runs(checkout, capsys):
    lines = [line for line in of_kind("commands") if " bench " in line]
    for line in lines:
        assert call([*shlex.split(line)[3:], "--turns", "2"]) == 0, (line, capsys.readouterr().err)
    assert len(lines) >= 1


@pytest.mark.slow
def test_the_command_that_draws_features_runs(checkout, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("sklearn")
    (line,) = [line for line in of_kind("commands") if "--picture" in line]
    assert call(shlex.split(line)[3:]) == 0, capsys.readouterr().err
    assert {"features.parquet", "map.png"} <= {path.name for path in checkout.iterdir()}


def test_the_arguments_of_push_and_demo_are_understood():
    lines = [line for line in of_kind("commands") if " push " in line]
    for line in lines:
        options = parse(push.Options, "push", shlex.split(line)[4:])
        assert (options.run, options.repo) == (Path("RUN"), "user/name")
    assert len(lines) == 3
    for line in of_kind("servers"):
        options = parse(demo.Options, "demo", shlex.split(line)[4:])
        assert options.runs[0] == Path("RUN")


@pytest.mark.slow
def test_a_run_is_evaluated_on_several_processes(checkout):
    (line,) = of_kind("evaluation on several processes")
    done = run(line, checkout)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


@pytest.mark.slow
def test_every_benchmark_has_the_flags_in_its_command(checkout):
    lines = of_kind("benchmarks")
    for line in lines:
        shown = run(f"{' '.join(line.split()[:3])} --help", checkout)
        assert shown.returncode == 0, shown.stderr
        assert all(flag in shown.stdout for flag in re.findall(r"--\w+", line)), line
    assert len(lines) >= 3
