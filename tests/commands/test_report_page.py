"""The page of a report in a real browser: what a reader points at, clicks and types."""

from pathlib import Path

import browser as chromium
import pytest
from support import write_images
from written_runs import write_image_set, write_run

from finetune.commands import report

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The pages of a run, of a run with 30 classes, of two runs and of a cross-validation."""
    folder = tmp_path_factory.mktemp("pages")
    write_images(folder / "photos" / "train", 4)
    write_images(folder / "photos" / "val", 3, seed=1)
    many = write_image_set(folder / "many", [f"a rather long class name {k}" for k in range(30)])
    write_run(folder / "one", folder / "photos")
    write_run(folder / "solved", folder / "photos", "feature_extractor")
    write_run(folder / "thirty", many)
    for fold in (1, 2, 3):
        write_run(folder / "cv" / f"fold-{fold}", folder / "photos", folds=3, fold=fold)
    runs = {"one": ["one"], "thirty": ["thirty"], "two": ["one", "solved"], "cv": ["cv"]}
    for name, given in runs.items():
        words = [*(str(folder / run) for run in given), "--output", str(folder / f"{name}.html")]
        assert report.main(words) == 0
    return {name: folder / f"{name}.html" for name in runs}


@pytest.fixture
def one(page, pages):
    """The page of one run, opened."""
    page.get(pages["one"].as_uri())
    return page


def find(browser, selector: str):
    return browser.find_element("css selector", selector)


def press(browser, *keys: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    chain = ActionChains(browser)
    for key in keys:
        chain.send_keys(getattr(Keys, key))
    chain.perform()


def point_at(browser, element, x: float) -> None:
    """Move the mouse to a fraction of an element's width, at half its height."""
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(browser).move_to_element_with_offset(element, round((x - 0.5) * element.size["width"]), 0).perform()


def test_pages_open_from_disk_without_errors_and_requests_and_fit_every_screen(page, pages):
    seen = 0
    for path in pages.values():
        for width in WIDTHS:
            for dark in (False, True):
                chromium.emulate(page, width, dark=dark)
                page.get(path.as_uri())
                assert chromium.console(page) == []
                assert set(chromium.requests(page)) == {path.as_uri()}
                assert page.execute_script("return document.documentElement.scrollWidth") == width
                outside = page.execute_script(
                    "return [...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll') &&"
                    " one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"
                )
                assert outside == []
                red = page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
                assert (int(red) < 60) == dark
                seen += 1
    assert seen == 16


def test_all_pictures_are_drawn(one):
    sizes = one.execute_script("return [...document.images].map((image) => [image.complete, image.naturalWidth])")
    assert len(sizes) == 2 * 3, "each mistake and its heat map"
    assert all(complete and width == 32 for complete, width in sizes)


def test_pointing_at_a_chart_shows_the_values_there(one):
    plot = find(one, ".plot")
    tip = find(plot, ".tip")
    assert not tip.is_displayed()
    point_at(one, plot, 0.52)
    assert tip.is_displayed()
    assert tip.text.split("\n") == ["epoch 2", "training", "0.5", "validation", "0.55"]
    point_at(one, plot, 0.98)
    assert tip.text.startswith("epoch 3\n")
    point_at(one, find(one, "h1"), 0.5)
    assert not tip.is_displayed()


def test_the_arrow_keys_show_the_values_of_a_chart(one):
    plot = find(one, ".plot")
    one.execute_script("arguments[0].focus()", plot)
    tip = find(plot, ".tip")
    press(one, "ARROW_RIGHT")
    assert tip.text.startswith("epoch 1\n")
    press(one, "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")
    assert tip.text.startswith("epoch 3\n")
    press(one, "ARROW_LEFT")
    assert tip.text.startswith("epoch 2\n")
    press(one, "ESCAPE")
    assert not tip.is_displayed()


def column(browser, k: int) -> list[str]:
    return [cell.text for cell in browser.find_elements("css selector", f".classes tbody tr :nth-child({k})")]


def test_a_click_and_the_keyboard_sort_the_classes(page, pages):
    page.get(pages["thirty"].as_uri())
    buttons = page.find_elements("css selector", ".classes th button")
    names = column(page, 1)
    assert len(names) == 30
    scores = [float(text) for text in column(page, 6)]
    assert scores == sorted(scores), "lowest F1 first"
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[0])
    buttons[0].click()
    expected = [f"a rather long class name {k}" for k in range(30)]
    assert column(page, 1) == expected != names
    buttons[0].click()
    assert column(page, 1) == expected[::-1]
    press(page, "TAB", "TAB", "ENTER")
    precision = [float(text) for text in column(page, 3)]
    assert precision == sorted(precision, reverse=True)
    assert len(set(precision)) > 1
    sorted_by = page.execute_script(
        "return [...document.querySelectorAll('[aria-sort]')].map((one) => one.textContent)"
    )
    assert sorted_by == ["precision"]


def test_a_cell_of_the_matrix_opens_its_images(one):
    cell = find(one, ".small-matrix .wrong button")
    assert cell.accessible_name.startswith("true ")
    count = int(cell.text)
    one.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    cell.click()
    dialog = find(one, "dialog")
    assert dialog.is_displayed()
    assert ", predicted as " in find(dialog, "h2").text
    pictures = dialog.find_elements("css selector", "img")
    assert len(pictures) == count >= 1
    assert all(picture.get_property("naturalWidth") == 32 for picture in pictures)
    press(one, "ESCAPE")
    assert not dialog.is_displayed()
    assert one.switch_to.active_element == cell
    press(one, "ENTER")
    assert dialog.is_displayed()
    find(dialog, ".close").click()
    assert not dialog.is_displayed()


def test_the_overview_of_many_classes_opens_cells_by_mouse_keyboard_and_menu(page, pages):
    page.get(pages["thirty"].as_uri())
    overview, status, dialog = (find(page, selector) for selector in (".large", ".status", "dialog"))
    point_at(page, overview, 0.5)
    assert "predicted a rather long class name" in status.text
    page.execute_script("arguments[0].focus()", overview)
    press(page, "ARROW_DOWN")
    before = status.text
    press(page, "ARROW_RIGHT")
    assert status.text != before
    press(page, "ENTER")
    assert dialog.is_displayed()
    assert dialog.find_elements("css selector", "img")
    press(page, "ESCAPE")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", overview)
    overview.click()
    assert dialog.is_displayed()
    press(page, "ESCAPE")
    find(page, ".picker option[value='3']").click()
    items = page.find_elements("css selector", ".picker li")
    assert len(items) >= 2
    find(items[0], "button").click()
    assert "a rather long class name" in find(dialog, "h2").text


def test_print_shows_all_rows_of_a_table(page, pages):
    page.get(pages["thirty"].as_uri())
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    sizes = page.execute_script(
        "const one = document.querySelector('.tall'); return [one.clientHeight, one.scrollHeight]"
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert sizes[0] == sizes[1] > 600
