"""`python -m finetune predict`: its inputs and its output formats."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import ROOT

from finetune.commands.predict import find


def test_predict_takes_files_folders_patterns_and_stdin(trained, call, image_folder, monkeypatch):
    val = image_folder / "val"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{val}/blue/00.jpg\n\n{val}/red/01.jpg\n"))
    inputs = (val / "blue" / "00.jpg", val / "green", f"{val}/r*/0[12].jpg", "-")
    code, out, _ = call("predict", trained / "fast", *inputs, "--json", "--topk", "2")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"].removeprefix(f"{val}/") for row in rows] == [
        "blue/00.jpg", "green/00.jpg", "green/01.jpg", "green/02.jpg", "red/01.jpg", "red/02.jpg", "blue/00.jpg",
        "red/01.jpg",
    ]  # fmt: skip
    assert all(len(row["top"]) == 2 and row["top"][0]["probability"] >= row["top"][1]["probability"] for row in rows)
    assert rows[0] == rows[6], "the same image, the same prediction"


def test_a_folder_that_links_back_to_itself_is_read_once(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.jpg").touch()
    (tmp_path / "inner" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "b.jpg").touch()
    assert find([str(tmp_path)]) == [str(tmp_path / "inner" / "a.jpg")]


def test_the_three_formats_agree(trained, call, image_folder):
    folder = image_folder / "val" / "red"
    texts = {form: call("predict", trained / "fast", folder, *form)[1] for form in ((), ("--json",), ("--csv",))}
    objects = [json.loads(line) for line in texts["--json",].splitlines()]
    table = list(csv.DictReader(io.StringIO(texts["--csv",])))
    assert len(objects) == len(table) == len(texts[()].splitlines()) == 3
    for row, cells, line in zip(objects, table, texts[()].splitlines(), strict=True):
        assert cells["class_1"] == row["class"]
        assert float(cells["probability_1"]) == row["probability"]
        assert f"{row['path']}  {row['class']} {row['probability']:.1%}" in line
        assert set(cells) >= {"class_3", "probability_3"}


def test_the_row_of_a_bad_image_has_its_error_and_the_others_are_classified(trained, call, image_folder, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    good = image_folder / "val" / "red" / "00.jpg"
    for workers in ("0", "2"):
        code, out, err = call("predict", trained / "fast", tmp_path / "a.jpg", good, tmp_path / "b.jpg", "--json",
                              "--workers", workers)  # fmt: skip
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 2
        assert [("error" in row, "class" in row) for row in rows] == [(True, False), (False, True), (True, False)]
        assert "it is no image" in rows[0]["error"]
        assert "No such file" in rows[2]["error"]
        assert "2 of 3 images could not be read" in err
    code, out, _ = call("predict", trained / "fast", tmp_path / "a.jpg", good, "--csv")
    assert [bool(row["error"]) for row in csv.DictReader(io.StringIO(out))] == [True, False]


def test_an_unsure_prediction_has_no_class(trained, call, image_folder):
    folder = image_folder / "val"
    rows = [json.loads(line) for line in call("predict", trained / "fast", folder, "--json")[1].splitlines()]
    limit = sorted(row["probability"] for row in rows)[4]  # four of nine are below it
    texts = {}
    for form in ((), ("--json",), ("--csv",)):
        code, texts[form], err = call("predict", trained / "fast", folder, "--abstain", repr(limit), *form)
        assert code == 0
        assert f"No class for 4 of 9 images: their highest probability is below {limit:g}." in err
    seen = 0
    lines, table = texts[()].splitlines(), csv.DictReader(io.StringIO(texts["--csv",]))
    for row, line, text, cells in zip(rows, lines, texts["--json",].splitlines(), table, strict=True):
        found, unsure = json.loads(text), row["probability"] < limit
        assert found == row | {"class": None if unsure else row["class"], "abstained": unsure}
        assert ("  abstains  " in line) == unsure
        assert cells["abstained"] == str(unsure).lower()
        seen += 1
    assert seen == 9
    code, _, err = call("predict", trained / "fast", folder, "--abstain", "1.5")
    assert code == 2
    assert "--abstain 1.5: must be a number at least 0 and at most 1" in err


def test_a_run_in_fp16_predicts_on_a_cpu_in_its_best_precision(trained, call, image_folder, tmp_path):
    run = shutil.copytree(trained / "fast", tmp_path / "half")
    config = json.loads((run / "config.json").read_text())
    assert config["precision"] == "no"
    (run / "config.json").write_text(json.dumps(config | {"precision": "fp16"}))
    image = image_folder / "val" / "red" / "00.jpg"
    code, out, err = call("predict", run, image, "--json")
    assert code == 0
    assert err.count("The run's precision is fp16, which needs a GPU. Here it is ") == 1
    assert out == call("predict", run, image, "--json", "--precision", "auto")[1]
    code, _, err = call("predict", run, image, "--precision", "fp16")
    assert code == 2
    assert "--precision fp16 needs a GPU" in err


def test_predict_and_evaluate_agree_to_the_bit(trained, call, image_folder, tmp_path):
    for flags in ((), ("--tta",), ("--batch-size", "4")):
        code, out, _ = call("evaluate", trained / "slow", "--json", *flags)
        assert code == 0
        errors = json.loads(out)["errors"]
        assert errors, "the slow run makes mistakes"
        for error in errors:
            code, out, _ = call("predict", trained / "slow", error["image"], "--json", *flags)
            assert (json.loads(out)["class"], json.loads(out)["probability"]) == (
                error["predicted"],
                error["probability"],
            )


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(trained, image_folder):
    command = f"{sys.executable} -m finetune predict {trained / 'fast'} {image_folder} --batch-size 1 | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_predict_draws_a_new_grid_only(trained, call, image_folder, tmp_path):
    grid = tmp_path / "grid.png"
    code, _, _ = call("predict", trained / "fast", image_folder / "val", "--grid", grid)
    assert code == 0
    assert np.asarray(Image.open(grid).convert("L")).std() > 5
    code, out, err = call("predict", trained / "fast", image_folder / "val", "--grid", grid)
    assert (code, out) == (2, "")
    assert "exists already" in err


def test_heat_maps_are_one_per_image_and_keep_folders_apart(trained, call, image_folder, tmp_path, monkeypatch):
    photos = shutil.copytree(image_folder / "val", tmp_path / "photos")
    shutil.copy(photos / "red" / "00.jpg", photos / "red" / "00.png")
    (photos / "red" / "bad.jpg").write_text("no image")
    monkeypatch.chdir(photos / "blue")
    images = ("../red", "00.jpg", photos / "blue" / "00.jpg")  # one image twice, by two names
    rows = {}
    for form in ("--json", "--csv"):
        folder = tmp_path / form
        code, out, err = call("predict", trained / "fast", *images, "--explain", folder, form, "--abstain", "0.01")
        assert code == 2
        assert "1 of 7 images could not be read" in err
        assert err.count(f"Heat maps of each image's first class, in {folder}: HiResCAM at stem, 16 × 16 cells") == 1
        found = map(json.loads, out.splitlines()) if form == "--json" else csv.DictReader(io.StringIO(out))
        rows[form] = list(found)
        written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        in_red = {f"red/{name}.png" for name in ("00.jpg", "00.png", "01.jpg", "02.jpg")}
        assert written == {*in_red, "blue/00.jpg.png"}
        for row in rows[form]:
            if row.get("error"):
                assert not row.get("explanation")
                continue
            name = "/".join((photos / "blue" / row["path"]).resolve().parts[-2:])
            assert row["explanation"] == f"{folder}/{name}.png"
            assert Image.open(row["explanation"]).size == (32, 32)
        assert len(rows[form]) == 7
    one, other = (tmp_path / form / "red" / "00.jpg.png" for form in rows)
    assert one.read_bytes() == other.read_bytes()


def test_heat_maps_go_into_an_empty_folder_only(trained, call, image_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    image = image_folder / "val" / "red" / "00.jpg"
    cases = [
        ((tmp_path / "full",), "is not empty"),
        ((tmp_path / "full" / "file",), "is a file"),
        ((tmp_path / "full" / "file" / "in",), "there is no folder"),
        ((tmp_path / "new", "--tta"), "leave out --tta"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, out, err = call("predict", trained / "fast", image, "--explain", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert sorted(tmp_path.rglob("*")) == before
