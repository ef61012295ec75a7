"""The audit as one HTML file with thumbnails. It loads nothing."""

from __future__ import annotations

from typing import Any

from PIL import ImageOps

from finetune.audit.collection import Collection, as_picture
from finetune.audit.findings import KINDS, Finding
from finetune.audit.text import grouped
from finetune.reporting.report.page import TEMPLATES, make_environment
from finetune.reporting.report.pictures import address

SHOWN = 60  # findings of a kind


def render(source: str, data: Collection, summary: dict[str, str], findings: list[Finding]) -> str:
    """The page."""
    return (
        make_environment()
        .get_template("audit.html")
        .render(
            source=source,
            summary=summary,
            classes=data.classes,
            counts=data.counts(),
            sections=[_section(data, kind, found) for kind, found in grouped(findings).items()],
            style=(TEMPLATES / "page.css").read_text(),
        )
    )


def _section(data: Collection, kind: str, found: list[Finding]) -> dict[str, Any]:
    title, advice = KINDS[kind]
    entries = [{"text": one.text, "pictures": [_address(data, k) for k in one.images]} for one in found[:SHOWN]]
    return {"kind": kind, "title": title, "advice": advice, "count": len(found), "entries": entries}


def _address(data: Collection, k: int) -> str:
    """An image's thumbnail as an address; empty where the image cannot be read any more."""
    try:
        return address(ImageOps.exif_transpose(as_picture(data.items[k])))
    except (OSError, SyntaxError, ValueError):
        return ""
