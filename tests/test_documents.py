"""Every command and every line of Python in the documents runs.

What needs a cluster, a network or a download is checked up to the plan, or by the names in it. The guides at the end of
docs/architecture.md have tests of their own, such as test_extension_guide.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torchvision
from safetensors.torch import save_file
from serving_client import serve
from support import ROOT, reset_accelerate
from test_imports import ORDER
from test_packaging import EXTRAS, listed, names

from finetune import __main__ as program
from finetune import recipes
from finetune.commands import demo, push
from finetune.config.command_line import parse
from finetune.inference.export_forms import PACKAGES
from finetune.runtime.entry import exit_code

ARCHITECTURE = ROOT / "docs" / "architecture.md"
RUN_FROM = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").glob("*.md")} - {ARCHITECTURE})]
DOCUMENTS = [*RUN_FROM, ARCHITECTURE, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
SERVER = "127.0.0.1:8000"  # in the documents' requests
TEXTS = {path: path.read_text() for path in DOCUMENTS}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[path], re.S | re.M)


# In the documents' order, each once.
COMMANDS = [*dict.fromkeys(line for path in RUN_FROM for block in blocks(path, "bash") for line in block.splitlines())]
# Each kind's pattern and its least number of commands. A command is of the first kind that matches.
KINDS = {
    "the README's two": (r"pip install -r requirements.txt && ", 2),
    "set-up": (r"pip install |pre-commit install", 4),
    "tests": (r"(\w+=\w+ )*python -m pytest", 7),
    "tools": (r"ruff |mypy|\.ci/run", 4),
    "benchmarks": (r"python -m benchmarks", 3),
    "evaluation on several processes": (r"accelerate launch .*-m finetune ", 1),
    "servers": (r"python -m finetune demo ", 2),
    "requests to a server": (r"curl ", 3),
    "commands": (r"python -m finetune ", 20),
    "GPUs, clusters, trackers": (r"(\w+=\S+ )?sbatch |wandb |launch/|.*launch/multi_node|.*launch/(multi_)?gpu", 10),
    "stop and resume": (r"python train.py .*--output runs/mine", 2),
    "training": (r"(accelerate launch|torchrun|python) ", 30),
}
KIND_OF = {
    command: next((k for k, (start, _) in KINDS.items() if re.match(start, command)), None) for command in COMMANDS
}


def of_kind(kind: str) -> list[str]:
    found = [command for command in COMMANDS if KIND_OF[command] == kind]
    assert len(found) >= KINDS[kind][1], f"{kind}: only {found}"
    return found


# Recipes and their commands in tables and sentences.
INLINE = sorted(
    {line for path in RUN_FROM for line in re.findall(r"`(python train\.py[^`]*)`", TEXTS[path]) if "--" in line}
)


def run(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


def call(words: list[str]) -> int:
    """Run `python -m finetune` in this process."""
    reset_accelerate()
    try:
        return exit_code(program.main, words)
    except SystemExit as end:  # --help
        return end.code


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A run's folder; nothing may be written into it."""
    import train as script

    folder = tmp_path_factory.mktemp("documents") / "RUN"
    reset_accelerate()
    flags = f"--recipe feature_extractor --data {image_folder} --output {folder} --tracker none --precision no"
    flags += " --epochs 1 --model shufflenet_v2_x0_5 --image-size 32 --weights none"
    assert script.main(flags.split()) == 0
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, in which the starter set is drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def checkout(trained, cache, image_folder, tmp_path, monkeypatch):
    """The working folder: the project as links, a run called RUN, image.jpg, and images of each kind in path/to."""
    folder = tmp_path / "checkout"
    (folder / "path" / "to").mkdir(parents=True)
    for name in ("train.py", "finetune", "launch", "benchmarks", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(trained, folder / "RUN")
    shutil.copy(image_folder / "val" / "red" / "00.jpg", folder / "image.jpg")
    for name in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (folder / "hymenoptera_data" / name).mkdir(parents=True)
        shutil.copy(folder / "image.jpg", folder / "hymenoptera_data" / name)
    untrained = torchvision.models.squeezenet1_0(weights=None)
    save_file(untrained.state_dict(), folder / "squeezenet1_0.safetensors")
    photos = folder / "path" / "to" / "photos"
    photos.symlink_to(image_folder)
    rows = [
        f"photos/{path.relative_to(image_folder)},{path.parent.name}" for path in image_folder.glob("train/*/*.jpg")
    ]
    (photos.parent / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (folder / "fixes.csv").write_text("path,action,new_label\ntrain/red/00.jpg,remove,\n")
    pixels, labels = np.zeros((12, 40, 40), np.uint8), np.arange(12) % 3
    np.savez(photos.parent / "arrays.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return folder


# ---- what the commands are -------------------------------------------------------------------------------------------
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


# ---- training --------------------------------------------------------------------------------------------------------
def flags(command: str) -> list[str]:
    return shlex.split(command)[shlex.split(command).index("train.py") + 1 :]


def understood(command: str):
    """The recipe with the settings that a command gives; None where it only asks for help."""
    if "--help" in flags(command):
        with pytest.raises(SystemExit, match=r"^0$"):
            recipes.from_command_line(flags(command))
        return None
    return recipes.from_command_line(flags(command))


def test_every_training_command_is_understood(checkout, capsys):
    lines = [*of_kind("training"), *of_kind("stop and resume"), *INLINE]
    for line in lines:
        recipe = understood(line)
        assert "--help" in line or recipe.recipe in recipes.NAMES, line
    assert len(INLINE) >= len(recipes.NAMES)
    assert len(lines) >= 42


def test_the_plan_in_the_guide_is_what_its_command_prints(capsys):
    import train as script

    (table,) = blocks(ROOT / "docs" / "recipes.md", "text")
    reset_accelerate()
    assert script.main(["--recipe", "gradual_unfreeze", "--plan"]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed[1 : 1 + len(table.splitlines())] == table.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("command", of_kind("training"))
def test_every_training_command_reaches_its_plan(command, checkout, capfd):
    """Without a network there are no weights to download, so random ones stand in for them."""
    import train as script

    recipe = understood(command)
    words = shlex.split(command)
    if recipe and not recipe.run.preview:
        words.append("--plan")
    if recipe and recipe.images.data != "starter":
        if not Path(recipe.images.data).exists():
            pytest.skip("needs a download")
        words += [] if "--weights" in words else ["--weights", "none"]
    if words[0] != "python":
        done = run(shlex.join(words), checkout)
        assert done.returncode == 0, done.stderr
        return
    reset_accelerate()
    try:
        code = exit_code(script.main, words[2:])
    except SystemExit as end:
        code = end.code
    assert code == 0, capfd.readouterr().err


def test_the_main_command_runs_as_written_and_transfer_helps(checkout):
    done = run(COMMANDS[0].partition("&& ")[2], checkout)
    assert done.returncode == 0, done.stderr
    best = float(re.search(r"Validation accuracy (\d\.\d+)", done.stdout).group(1))
    assert best >= 0.9
    assert "\r" not in done.stdout, "no progress bar in a log file"
    assert len(done.stdout.splitlines()) < 50
    (folder,) = (checkout / "runs").iterdir()
    assert folder.name.startswith("feature_extractor-")


@pytest.mark.slow
def test_the_same_network_from_scratch_learns_little_in_the_same_time(checkout):
    (scratch,) = [line for line in INLINE if "--weights none" in line]
    done = run(f"{scratch} --tracker none --output scratch", checkout)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"Best validation accuracy (\d\.\d+)", done.stdout).group(1)) <= 0.6


@pytest.mark.slow
def test_the_commands_that_stop_and_resume_run(checkout):
    first, again = of_kind("stop and resume")
    assert again == f"{first} --resume"
    tiny = "--model shufflenet_v2_x0_5 --image-size 32 --weights none --epochs 1 --tracker none"
    assert run(f"{first} {tiny}", checkout).returncode == 0
    done = run(f"{again} {tiny}", checkout)
    assert "runs/mine/checkpoints/" in done.stdout
    assert done.returncode == 0, done.stderr


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


def python_blocks() -> list[tuple[Path, str]]:
    return [(path, block) for path in RUN_FROM for block in blocks(path, "python")]


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


# ---- links and names -------------------------------------------------------------------------------------------------
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


# ---- the table of packages -------------------------------------------------------------------------------------------
TABLE = re.findall(r"^\| `([\w.]+?)(?:/|\.py)` \|([^|]*)\|", TEXTS[ARCHITECTURE], re.M)


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
