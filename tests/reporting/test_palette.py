"""Colours are told apart from the page."""

import re

from support import ROOT

from finetune.reporting import palette

STYLES = (ROOT / "finetune" / "reporting" / "report" / "templates" / "page.css").read_text()


def luminance(color: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mixed(one: str, other: str, share: float) -> str:
    """A colour between two, as CSS's color-mix computes it in sRGB."""
    pairs = [(int(one[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def test_lines_and_texts_have_the_contrast_of_wcag_aa_on_light_and_dark_pages():
    blocks = re.findall(r":root \{(.*?)\}", STYLES, re.S)
    light, dark = (dict(re.findall(r"--([a-z]+): (#\w{6});", block)) for block in blocks)
    assert light.keys() == dark.keys() >= {"page", "panel", "text", "muted", "link", "note"}
    for colors, lines in ((light, palette.ON_LIGHT), (dark, palette.ON_DARK)):
        assert len(lines) == len(palette.PALETTE)
        for color in lines:
            assert contrast(color, colors["page"]) >= 3, color
            assert contrast(color, colors["panel"]) >= 3, color
        for text in ("text", "muted", "link"):
            for ground in ("page", "panel"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
        assert contrast(colors["text"], colors["note"]) >= 4.5
        for cell in ("right", "wrong"):  # the strongest shade of a cell is four fifths of its colour
            assert contrast(colors["text"], mixed(colors[cell], colors["page"], 0.8)) >= 4.5, cell
