"""`python -m finetune report`: one HTML page of runs."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import write_images
from written_runs import change, unfinish, write_image_set, write_run

from finetune.training import metrics

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>", "{{ 7 * 7 }}'&amp;"]
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """The elements of a page, its texts, and its scripts by type."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.elements, self.texts = path.read_text(), [], []
        self.scripts, self.inside = [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.inside.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        assert self.inside[-1] == tag or tag in ("path", "rect"), f"{self.getpos()}: {tag} in {self.inside}"
        self.inside.pop()

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.inside[-1:] == ["script"]:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self.inside[-1:] != ["style"]:
            self.texts.append(data)

    def data(self) -> list[dict]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]

    def matrix(self) -> dict:
        (found,) = [value for value in self.data() if "cells" in value]
        return found

    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


@pytest.fixture
def run(image_folder, tmp_path):
    """A run of the small folder, nine validation images."""
    return write_run(tmp_path / "run", image_folder)


@pytest.fixture
def report(call, tmp_path):
    """Write a report and read it: the page, and what the command printed."""

    def make(*arguments: object) -> tuple[Page, str]:
        path = tmp_path / f"{len(list(tmp_path.glob('page-*.html')))}.html"
        path = tmp_path / f"page-{path.name}"
        code, out, err = call("report", *arguments, "--output", path)
        assert code == 0, err
        return Page(path), out

    return make


def test_the_page_of_a_run_has_all_sections_and_loads_nothing(run, report):
    page, out = report(run)
    expected = ["curves", "confusion", "classes", "mistakes", "calibration", "depths", "settings", "environment"]
    assert page.sections() == expected
    low, high = metrics.wilson(6 / 9, 9)
    assert f"66.7 % accuracy 95 % interval {100 * low:.1f} % to {100 * high:.1f} %" in page.text
    assert "Of 9 validation images." in page.text
    assert "The validation images thus chose the epoch" in page.text
    assert page.inside == []
    loaded = [value for _, attributes in page.elements for name, value in attributes.items()
              if name in ("src", "href", "data", "action", "poster", "srcset")]  # fmt: skip
    assert len(loaded) >= 10
    assert all(value.startswith(("data:image/webp;base64,", "#")) for value in loaded)
    assert not re.search("https?:", page.source)
    assert str(len(page.matrix()["images"])) in page.text
    assert "MB)" in out


def test_the_browser_is_told_to_run_the_pages_own_script_alone(run, report):
    page, _ = report(run)
    (script,) = [text for kind, text in page.scripts if kind is None]
    (policy,) = [one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_of_strangers_are_text_and_nothing_else(report, tmp_path):
    pages = {}
    for kind, names, name in (
        ("harmless", ["a", "b", "c", "d"], "run"),
        ("hostile", sorted(HOSTILE), '<img src=y onerror=alert(2)> "run"'),
    ):
        folder = write_run(tmp_path / name, write_image_set(tmp_path / kind, names))
        versions = {names[0]: names[1]}
        change(folder / "config.json", git_commit=names[1], device=names[0], versions=versions, project=names[2])
        pages[kind], _ = report(folder)
    harmless, hostile = ([(tag, sorted(values)) for tag, values in page.elements] for page in pages.values())
    assert hostile == harmless
    assert len(hostile) >= 300
    page = pages["hostile"]
    assert [kind for kind, _ in page.scripts if kind != "application/json"] == [None]
    assert page.matrix()["classes"] == sorted(HOSTILE)
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text, name


def test_a_run_that_is_running_gives_what_there_is(run, report):
    unfinish(run)
    page, out = report(run)
    assert page.sections() == ["curves", "depths", "settings", "environment"]
    assert "has not ended: this is its state after 3 epochs" in page.text
    assert "the best so far" in page.text
    assert "has not ended" in out
    (run / "resume-me").touch()
    assert "was stopped, and can be resumed" in report(run)[0].text


def test_without_the_images_there_are_no_pictures_and_the_page_says_why(report, tmp_path):
    write_images(tmp_path / "photos" / "train", 2)
    write_images(tmp_path / "photos" / "val", 2, seed=1)
    run = write_run(tmp_path / "run", tmp_path / "photos")
    assert report(run)[0].matrix()["images"]
    (tmp_path / "photos" / "val" / "red" / "00.jpg").rename(tmp_path / "photos" / "val" / "red" / "other.jpg")
    changed = report(run)[0]
    shutil.rmtree(tmp_path / "photos")
    gone, out = report(run)
    for page, why in ((changed, "have changed after the training"), (gone, "the run's images are gone")):
        assert why in page.text
        assert page.matrix()["images"] == {}
        assert "confusion" in page.sections()
        assert not [tag for tag, _ in page.elements if tag == "img"]
    assert "There are no pictures" in out


def test_the_worst_mistakes_have_heat_maps_of_the_predicted_class(run, report):
    page, _ = report(run)
    maps = [attributes for tag, attributes in page.elements if attributes.get("alt", "").startswith("heat map for ")]
    assert len(maps) == 3
    assert len({attributes["src"] for attributes in maps}) == 3
    assert "The second picture shows what speaks for the predicted class." in page.text


def test_the_limits_of_pictures_hold_and_are_stated(run, report):
    page, _ = report(run, "--cell-images", "1")
    found = page.matrix()
    assert max(len(images) for *_, images in found["cells"]) == 1
    assert sum(count for _, _, count, _ in found["cells"]) == 9
    assert "at most 1 of a cell" in page.text
    everything = sum(len(source) for source in re.findall(r"data:image/webp;base64,[\w+/=]+", report(run)[0].source))
    page, _ = report(run, "--image-mb", f"{everything / 2e6:.6f}")
    sources = re.findall(r"data:image/webp;base64,[\w+/=]+", page.source)
    assert sum(map(len, sources)) <= everything / 2
    assert 0 < len(sources) < 9
    assert "no more because of its limit" in page.text
    mistakes = [attributes for tag, attributes in page.elements if "data-image" in attributes]
    assert len(mistakes) == 3, "the worst mistakes come first"


def test_a_solved_head_has_its_path_in_place_of_epochs(image_folder, report, tmp_path):
    page, _ = report(write_run(tmp_path / "run", image_folder, "feature_extractor"))
    charts = [value for value in page.data() if "stops" in value]
    assert [stop["text"] for stop in charts[0]["stops"]] == ["L2 strength 0.1", "L2 strength 0.01", "L2 strength 0.001"]
    assert charts[1]["names"] == ["training", "validation", "held out of training"]
    assert charts[1]["stops"][0]["values"][2]["text"] == "60.0 % ± 5.0 %"
    assert "Regularisation path" in page.text
    assert "the validation images chose no weights" in page.text


def test_many_classes_get_an_overview_instead_of_a_table(report, tmp_path):
    classes = [f"class {k:03}" for k in range(102)]
    page, _ = report(write_run(tmp_path / "run", write_image_set(tmp_path / "set", classes, val=1)))
    rectangles = [attributes for tag, attributes in page.elements if tag == "rect"]
    assert len(rectangles) == 102 + 1  # one of them marks the current cell
    assert len([tag for tag, _ in page.elements if tag == "option"]) == 102 + 1
    assert "small-matrix" not in [attributes.get("class") for tag, attributes in page.elements if tag == "table"]
    assert len(page.source) < 2_000_000


def test_runs_are_compared_best_first_by_what_differs(image_folder, report, tmp_path):
    for name, lr in (("slow", 0.1), ("fast", 0.2)):
        write_run(tmp_path / name, image_folder, lr=lr)
    change(tmp_path / "slow" / "summary.json", best_val_accuracy=0.5)
    page, _ = report(tmp_path / "slow", tmp_path / "fast")
    (header,) = re.findall(r"<thead>(.*?)</thead>", page.source.partition('id="comparison"')[2], re.S)[:1]
    assert re.findall(r'<button type="button">(.*?)</button>', header) == [
        *("run", "val accuracy", "95 % interval", "epochs run", "best epoch", "val loss", "images/s", "seconds", "lr")
    ]
    names = re.findall(r'<a href="#run-\d-report">(\w+)</a>', page.source)
    assert names == ["fast", "slow"]
    curves = next(value for value in page.data() if "stops" in value)
    assert curves["names"] == names
    anchors = page.sections()
    assert len(anchors) == len(set(anchors)) == 1 + 2 * 8


def test_a_cross_validation_is_one_report_of_its_folds(image_folder, report, tmp_path):
    for fold in (1, 2):
        write_run(tmp_path / "cv" / f"fold-{fold}", image_folder, folds=3, fold=fold)
    page, _ = report(tmp_path / "cv")
    assert page.sections()[:2] == ["folds", "confusion"]
    assert "2 of 3 folds have ended" in page.text
    write_run(tmp_path / "cv" / "fold-3", image_folder, folds=3, fold=3)
    page, _ = report(tmp_path / "cv")
    assert "have ended" not in page.text
    assert "Of all 30 images, each predicted by the run of the fold that it was held out of." in page.text
    assert sum(count for _, _, count, _ in page.matrix()["cells"]) == 30
    assert page.matrix()["images"]
    assert "--folds 3" in page.text
    assert "--fold " not in page.text


def test_mistakes_are_told_as_one_message_and_nothing_is_written(run, call, tmp_path, image_folder):
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    write_run(tmp_path / "cv" / "fold-1", image_folder, folds=3, fold=1)
    damaged = shutil.copytree(run, tmp_path / "damaged")
    change(damaged / "summary.json", best_val_accuracy="<b>")
    others = shutil.copytree(run, tmp_path / "others")
    shutil.copy(tmp_path / "cv" / "fold-1" / "validation.safetensors", others)
    cases = {
        ("report",): "takes a run's folder",
        ("report", tmp_path / "missing"): "is no run: it does not exist",
        ("report", tmp_path): "is no run: it has no config.json",
        ("report", run, "--output", taken): "exists already",
        ("report", run, "--output", tmp_path / "no" / "page.html"): "there is no folder",
        (
            "report",
            run,
            "--cell-images",
            "1000",
        ): "--cell-images 1000: must be a whole number at least 0 and at most 96",
        ("report", run, "--image-mb", "-1"): "--image-mb -1.0: must be a number at least 0",
        ("report", run, tmp_path / "cv"): "is a cross-validation, which has a report of its own",
        ("report", damaged): "best_val_accuracy '<b>' must be a number",
        ("report", others): "belong to other images",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words, message in cases.items():
        code, _, err = call(*words)
        assert code == 2, words
        assert message in err, err
        assert len(err.splitlines()) <= 2, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(cases) >= 10


def test_without_output_the_page_is_in_the_runs_folder_and_is_replaced(run, call):
    for arguments in ((run,), (run / "model",)):
        assert call("report", *arguments)[0] == 0
        assert Page(run / "report.html").sections()
        assert not (run / "model" / "report.html").exists()
