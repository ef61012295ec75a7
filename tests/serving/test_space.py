"""A Space, in an environment of its own requirements."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from finetune import __main__ as program
from finetune.runtime.entry import exit_code

pytestmark = pytest.mark.browser


@pytest.fixture
def space(run, tmp_path):
    """The address of a Space of the run, which has all but torch from its requirements alone."""
    folder, environment = tmp_path / "space", tmp_path / "environment"
    assert exit_code(program.main, ["push", str(run), "me/colours", "--space", "--dry-run", str(folder)]) == 0
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    Path(own, "running.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # torch is not installed a second time
    pip = [python, "-m", "pip", "--quiet"]
    probe = [*pip, "download", "--no-deps", "--dest", tmp_path / "probe", "packaging"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs a package index")  # a version that no index has is no reason
    done = subprocess.run(
        [*pip, "install", "-r", folder / "requirements.txt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [python, folder / "app.py"], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    yield re.search(r"http://\S+", line).group()
    process.terminate()
    process.wait(20)


def test_a_space_classifies_pictures_without_this_project(page, space, run, call, image_folder):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    paths = [image_folder / "val" / name / "00.jpg" for name in ("blue", "red")]
    rows = [json.loads(line) for line in call("predict", run, *paths, "--json")[1].splitlines()]
    assert rows[0]["class"] != rows[1]["class"]
    page.get(space)
    for row in rows:
        page.refresh()
        chooser = WebDriverWait(page, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, "input[type=file]"))
        chooser[0].send_keys(row["path"])
        WebDriverWait(page, 60).until(lambda page: "%" in page.find_element(By.TAG_NAME, "body").text)
        lines = page.find_element(By.TAG_NAME, "body").text.splitlines()
        for one in row["top"]:
            (shown,) = [after for name, after in pairwise(lines) if name == one["class"] and after.endswith("%")]
            assert float(shown.rstrip("%")) == pytest.approx(100 * one["probability"], abs=1)
