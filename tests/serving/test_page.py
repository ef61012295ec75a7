"""The page, in headless Chromium."""

import base64
import json
import shutil
from pathlib import Path

import browser as chromium
import pytest
from serving_client import serve

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.browser
NASTY = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """A server of the run, and of a model folder from a stranger: its class names and card are HTML."""
    stranger = tmp_path_factory.mktemp("strangers") / "<b>bold<b>"
    shutil.copytree(run / "model", stranger)
    about = json.loads((stranger / "model.json").read_text())
    about["classes"] = [f"{NASTY}{k}" for k in range(3)]
    (stranger / "model.json").write_text(json.dumps(about))
    text = f"# {NASTY}\n\n| {NASTY} | b |\n| --- | --- |\n| {NASTY} | d |\n\n<script>x()</script>"
    (stranger / "README.md").write_text(text)
    with serve(run, stranger) as found:
        yield found


def wait(page, found):
    """What `found(page)` returns once that is true."""
    return WebDriverWait(page, 20).until(found)


def start(page, running) -> None:
    """Open the page and wait until it has asked for everything."""
    page.get(f"http://127.0.0.1:{running.port}/")
    wait(page, lambda page: page.find_elements(By.CSS_SELECTOR, "#gallery button"))


def answers(page, count: int = 1) -> list[dict[str, float]]:
    """The probabilities of each model, once the page shows them."""

    def shown(page):
        found = page.find_elements(By.CSS_SELECTOR, "#answers:not(.busy) .answer")
        return found if len(found) == count else None

    return [
        {
            line.find_element(By.CLASS_NAME, "name").text: float(line.get_attribute("data-probability"))
            for line in article.find_elements(By.TAG_NAME, "li")
        }
        for article in wait(page, shown)
    ]


def clear(page) -> None:
    page.execute_script("document.getElementById('answers').replaceChildren()")


@pytest.fixture
def rows(run, call, image_folder):
    code, out, _ = call("predict", run, image_folder / "val", "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def assert_quiet(page, running) -> None:
    """Assert that there was no message on the console, and no request to another host."""
    assert chromium.console(page) == []
    asked = [one for one in chromium.requests(page) if not one.startswith("chrome://")]
    assert asked
    assert all(one.startswith(f"http://127.0.0.1:{running.port}/") for one in asked)


def test_a_picture_gets_the_probabilities_of_predict(page, running, rows):
    start(page, running)
    for row in rows:
        clear(page)
        page.find_element(By.ID, "file").send_keys(row["path"])
        (found,) = answers(page)
        assert found == pytest.approx({one["class"]: one["probability"] for one in row["top"]}, abs=1e-6)
        assert next(iter(found)) == row["class"] == page.find_element(By.CSS_SELECTOR, ".first b").text
    assert len(rows) == 9
    assert_quiet(page, running)


def test_a_bad_file_gets_a_sentence_and_the_next_picture_an_answer(page, running, rows, tmp_path):
    (tmp_path / "words.jpg").write_text("no picture")
    start(page, running)
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "words.jpg"))
    problem = page.find_element(By.ID, "problem")
    wait(page, lambda _: problem.is_displayed())
    assert problem.text == "This is no image that can be read. Send JPEG, PNG, WebP, BMP, TIFF or PPM."
    page.find_element(By.ID, "file").send_keys(rows[0]["path"])
    answers(page)
    assert not problem.is_displayed()
    (tmp_path / "large.jpg").write_bytes(b"x" * (2**24 + 1))
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "large.jpg"))
    wait(page, lambda _: problem.is_displayed())
    assert "larger than 16 MiB" in problem.text
    messages = chromium.console(page)
    assert len(messages) == 1, "the browser itself reports the refused request"
    assert "415" in messages[0]


def test_pictures_are_pasted_and_dropped(page, running, rows):
    start(page, running)
    give = """
        const [text, kind] = arguments, bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "x.jpg", {type: "image/jpeg"}));
        const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
                                       : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    """
    for kind, row in zip(("paste", "drop"), rows, strict=False):
        clear(page)
        page.execute_script(give, base64.b64encode(Path(row["path"]).read_bytes()).decode(), kind)
        (found,) = answers(page)
        assert found[row["class"]] == pytest.approx(row["probability"], abs=1e-6), kind
    assert_quiet(page, running)


def test_the_keyboard_alone_is_enough(page, running, rows):
    start(page, running)
    seen = []
    for _ in range(30):
        webdriver.ActionChains(page).send_keys(Keys.TAB).perform()
        element = page.switch_to.active_element
        outline = "return getComputedStyle(arguments[0].closest('label') || arguments[0]).outlineStyle"
        assert page.execute_script(outline, element) == "solid", "the focus is visible"
        seen.append(element.get_attribute("id") or element.tag_name)
        if element.tag_name == "button":
            break
    assert "file" in seen, "a picture can be chosen"
    element.send_keys(Keys.ENTER)
    (found,) = answers(page)
    assert found.values()
    page.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert page.find_element(By.CSS_SELECTOR, ".card h3").is_displayed()
    assert_quiet(page, running)


def test_the_examples_show_wrong_ones_and_are_classified_on_a_click(page, running, rows):
    start(page, running)
    buttons = page.find_elements(By.CSS_SELECTOR, "#gallery button")
    wrong = [row for row in rows if row["class"] != row["path"].split("/")[-2]]
    assert len(page.find_elements(By.CSS_SELECTOR, "#gallery button.wrong")) == len(wrong) >= 1
    assert len(buttons) == 9
    true, _, predicted = buttons[0].text.partition(", not ")
    clear(page)
    buttons[0].click()
    (found,) = answers(page)
    assert max(found, key=found.get) == predicted != true
    assert_quiet(page, running)


def test_the_page_shows_where_the_model_looked(page, running, rows):
    start(page, running)
    page.find_element(By.ID, "file").send_keys(rows[0]["path"])
    answers(page)
    look, heat = (page.find_element(By.CLASS_NAME, name) for name in ("look", "heat"))
    assert not heat.is_displayed()
    look.click()
    wait(page, lambda _: heat.is_displayed() and heat.get_property("naturalWidth") == 32)
    assert look.get_attribute("aria-pressed") == "true"
    assert page.find_element(By.CLASS_NAME, "note").text.startswith(f"Yellow speaks for {rows[0]['class']}. ")
    look.click()
    assert not heat.is_displayed()
    assert_quiet(page, running)


def test_two_visitors_at_once_get_their_own_answers(page, running, rows, tmp_path):
    other = chromium.start(tmp_path / "profile")
    try:
        visitors = ((page, rows[0]), (other, rows[-1]))
        for visitor, _ in visitors:
            start(visitor, running)
        for visitor, row in visitors:
            visitor.find_element(By.ID, "file").send_keys(row["path"])
        for visitor, row in visitors:
            (found,) = answers(visitor)
            assert found[row["class"]] == pytest.approx(row["probability"], abs=1e-6)
    finally:
        other.quit()
    assert rows[0]["probability"] != rows[-1]["probability"]


def test_two_runs_stand_side_by_side_and_what_a_model_says_is_text(page, two, rows):
    start(page, two)
    page.find_element(By.ID, "file").send_keys(rows[0]["path"])
    first, second = answers(page, count=2)
    assert set(second) == {f"{NASTY}{k}" for k in range(3)}
    assert sorted(first.values()) == pytest.approx(sorted(second.values()), abs=1e-6)
    boxes = [one.rect for one in page.find_elements(By.CLASS_NAME, "answer")]
    assert boxes[0]["y"] == boxes[1]["y"]
    for summary in page.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    assert page.find_elements(By.CSS_SELECTOR, ".card th")[-2].text == NASTY
    assert page.title == "colours and <b>bold<b>"
    assert page.find_elements(By.CSS_SELECTOR, "[onerror], .card script, h1 b, .card b") == []
    assert_quiet(page, two)


def test_the_page_fits_a_phone_and_a_desk_light_and_dark(page, running, rows):
    seen, papers = 0, set()
    for width in (390, 1280):
        for dark in (False, True):
            chromium.emulate(page, width, dark=dark)
            start(page, running)
            page.find_element(By.ID, "file").send_keys(rows[0]["path"])
            answers(page)
            assert page.execute_script("return document.documentElement.scrollWidth") == width
            papers.add((dark, page.execute_script("return getComputedStyle(document.body).backgroundColor")))
            seen += 1
    assert (seen, len(papers)) == (4, 2)
    assert_quiet(page, running)
