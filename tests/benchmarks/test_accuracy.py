"""The benchmark of accuracy: which runs it makes, what it keeps, its table."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support import ROOT

from benchmarks import accuracy, accuracy_report
from finetune.runtime.entry import exit_code


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "mobilenet_v2.safetensors"
    file.touch()
    return f"mobilenet_v2={file}"


@pytest.fixture
def bench(monkeypatch, tmp_path, image_folder, weights):
    """Run the benchmark with a fake measurement; the jobs that were measured."""
    measured = []

    def fake(job, data, weights, python, folder):
        measured.append(job)
        score = 0.9 if job.method == "timm" else 0.8 + 0.02 * job.seed
        return {"test_accuracy": score, "val_accuracy": 0.7, "versions": {}, "seconds": 10.0 + job.seed}

    def run(*flags, measure=fake, code=0, picture=False):
        measured.clear()
        words = ["--hymenoptera", image_folder, "--weights", weights, "--output", tmp_path / "out", *flags]
        monkeypatch.setattr(accuracy, "measure", measure)
        if not picture:  # it takes a second
            monkeypatch.setattr(accuracy_report, "picture", lambda *_: None)
        monkeypatch.setattr(accuracy, "make_environment", lambda folder: folder / "python")
        assert exit_code(accuracy.main, list(map(str, words))) == code
        return list(measured)

    return run


SMALL = ("--sets", "ants_bees", "--sizes", "128", "--environment", "peers")


def test_runs_that_the_folder_has_are_not_repeated(bench, tmp_path):
    first = bench(*SMALL, "--methods", "timm", "ours:finetune", "--seeds", "1")
    assert [(job.method, job.seed) for job in first] == [("timm", 0), ("ours:finetune", 0)]
    assert bench(*SMALL, "--methods", "timm", "ours:finetune", "--seeds", "1") == []
    more = bench(*SMALL, "--methods", "timm", "ours:finetune", "ours:last_layers", "--seeds", "2")
    assert [(job.method, job.seed) for job in more] == [
        ("ours:last_layers", 0), ("timm", 1), ("ours:finetune", 1), ("ours:last_layers", 1),
    ]  # fmt: skip
    (tmp_path / "out").rename(tmp_path / "before")
    (tmp_path / "out").mkdir()
    shutil.copy(tmp_path / "before" / "accuracy.json", tmp_path / "out")
    assert bench(*SMALL, "--methods", "timm", "ours:finetune", "--seeds", "2") == [], "nor of a copied file"


def test_the_table_has_every_run_that_was_kept(bench, tmp_path):
    bench(*SMALL, "--methods", "timm", "--seeds", "1")
    bench(*SMALL, "--methods", "ours:finetune", "sklearn:raw", "--seeds", "3")
    lines = (tmp_path / "out" / "accuracy.md").read_text().splitlines()
    assert "| set | method | mobilenet_v2, 128 px |" in lines
    assert "| ants_bees | ours:finetune | 0.820 ± 0.020, 11 s |" in lines
    assert "| ants_bees | timm | **0.900** (1), 10 s |" in lines
    assert "| ants_bees | sklearn:raw | 0.800 (1), 10 s |" in lines, "without a seed, it runs once"
    content = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert len(content["runs"]) == 5
    assert [row["method"] for row in content["cells"]] == ["ours:finetune", "sklearn:raw", "timm"]


def test_the_picture_has_a_panel_for_each_set_and_backbone(bench, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    flags = ("--sets", "ants_bees", "--sizes", "128", "64", "--environment", "peers", "--seeds", "1")
    bench(*flags, "--methods", "timm", "ours:finetune", "fastai", picture=True)
    panels = drawn[-1].axes
    assert [axis.get_title() for axis in panels] == [f"ants_bees: mobilenet_v2, {size} px" for size in (128, 64)]
    for axis in panels:
        labels = [text for text in axis.texts if text.get_text()]
        assert {text.get_text() for text in labels} == {"timm", "ours:finetune", "fastai"}
        boxes = [text.get_window_extent() for text in labels]
        assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])
    with Image.open(tmp_path / "out" / "accuracy.png") as image:
        assert min(image.size) > 300


def test_the_table_is_whole_after_the_first_seed(weights, tmp_path):
    flags = ["--weights", weights, "--hymenoptera", str(tmp_path), "--output", str(tmp_path), "--seeds", "2"]
    done = accuracy.jobs(accuracy.parse([*flags, "--sets", "ants_bees", "starter"]), ["timm"])
    assert [(job.set, job.model, job.size, job.seed) for job in done] == [
        (name, *backbone, seed)
        for seed in (0, 1)
        for name, backbone in (
            ("ants_bees", ("mobilenet_v2", 224)),
            ("ants_bees", ("mobilenet_v2", 128)),
            ("starter", ("shufflenet_v2_x0_5", 64)),
        )
    ]


def test_sets_of_ones_own_stand_beside_ours(bench, tmp_path):
    own = [tmp_path / "fish.csv", tmp_path / "birds.csv"]
    for file in own:
        file.write_text("path,label,split\na.png,a,train\nb.png,a,val\nc.png,a,test\n")
    flags = ("--sizes", "128", "--seeds", "1", "--methods", "ours:finetune", "ours:best", "--csv", *own)
    assert [job.set for job in bench(*flags)] == ["fish", "fish", "birds", "birds"]
    ours = bench(*flags, "--sets", "ants_bees")
    assert [job.set for job in ours] == ["ants_bees"] * 2, "the others are known"
    lines = (tmp_path / "out" / "accuracy.md").read_text().splitlines()
    rows = [line.split(" | ")[:2] for line in lines if line.startswith(("| ants_bees", "| birds", "| fish"))]
    methods = ("ours:finetune", "ours:best")
    assert rows == [[f"| {name}", method] for name in ("ants_bees", "birds", "fish") for method in methods]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("starter.csv", "path,label,split\n", "has the name of another set"),
        ("birds.csv", None, "there is no file"),
        ("birds.csv", "path,label\na.png,a\n", "needs the columns path, label and split"),
        ("birds.csv", "file,label,split\na,a,train\nb,a,val\nc,a,test\n", "needs the columns path, label and split"),
        ("birds.csv", "path,label,split\na.png,a,train\n", "needs the columns path, label and split"),
    ],
)
def test_a_set_that_no_method_could_read_is_refused(name, content, message, bench, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert bench("--csv", tmp_path / name, "--methods", "ours:finetune", code=2) == []
    assert message in capsys.readouterr().err


def test_two_sets_of_one_name_are_refused(bench, tmp_path, capsys):
    files = [tmp_path / folder / "birds.csv" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text("path,label,split\na.png,a,train\nb.png,a,val\nc.png,a,test\n")
    with pytest.raises(SystemExit, match="2"):
        bench("--csv", *files, "--methods", "ours:finetune")
    assert "two files are named birds" in capsys.readouterr().err


def test_a_failed_run_is_told_and_tried_again(bench, capsys):
    fail = subprocess.CalledProcessError(3, "python")

    def failing(job, *_):
        if job.method == "timm":
            raise fail
        return {"test_accuracy": 0.5, "val_accuracy": 0.5, "versions": {}, "seconds": 1.0}

    flags = (*SMALL, "--methods", "timm", "ours:finetune", "--seeds", "1")
    assert bench(*flags, measure=failing, code=1) == []
    assert "timm-0 failed with exit code 3: see" in capsys.readouterr().out
    assert [job.method for job in bench(*flags)] == ["timm"]


def test_a_method_without_its_second_part_means_all_of_its_kind():
    assert accuracy.methods_of(["sklearn"]) == ["sklearn:raw", "sklearn:standardised"]
    assert accuracy.methods_of(["ours:scratch", "timm", "timm"]) == ["ours:scratch", "timm"]
    assert "ours:feature_extractor" in accuracy.methods_of(["ours"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "keras"], "unknown method 'keras'"),
        (["--methods", "ours:nothing"], "unknown recipe 'nothing'"),
        (["--methods", "timm"], "need --environment"),
        (["--sets", "caltech15"], "needs --caltech"),
        (["--sets", "ants_bees", "--backbones", "squeezenet1_0"], "--weights squeezenet1_0=FILE"),
    ],
)
def test_mistakes_are_told_before_anything_runs(flags, message, image_folder, weights, tmp_path, capsys):
    common = ["--hymenoptera", str(image_folder), "--weights", weights, "--output", str(tmp_path / "out")]
    try:
        code = exit_code(accuracy.main, [*common, "--sets", "starter", *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_means_are_over_what_all_methods_have():
    def run(method, name, score):
        return {"set": name, "model": "m", "size": 8, "method": method, "seed": 0, "seconds": 1.0,
                "test_accuracy": score, "val_accuracy": 0.0}  # fmt: skip

    records = [run("a", "x", 0.5), run("a", "y", 0.7), run("a", "z", 0.1), run("b", "x", 0.6), run("b", "y", 1.0)]
    rows = accuracy_report.cells(records, {"sets": ["x", "y", "z"], "methods": ["a", "b"]})
    assert accuracy_report.summary(rows)[-2:] == ["| a | 0.600 | 1 |", "| b | 0.800 | 1 |"]
    assert accuracy_report.summary(rows[1:]) == [], "one set alone has both"
    assert accuracy_report.summary([]) == []


@pytest.mark.slow
def test_ours_and_the_tutorial_are_measured_in_processes_of_their_own(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accuracy", "--sets", "starter", "--seeds", "1", "--output", tmp_path]
    command += ["--methods", "ours:feature_extractor", "tutorial:feature_extractor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "accuracy.json").read_text())["runs"]
    assert {run["method"] for run in runs} == {"ours:feature_extractor", "tutorial:feature_extractor"}
    for run in runs:
        assert 0.5 < run["test_accuracy"] <= 1, run
        assert run["seconds"] > 1
        assert run["versions"]["torch"]
    assert not (tmp_path / "runs" / "scratch").exists()
