"""The audit as one HTML file with thumbnails. It loads nothing."""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
from PIL import ImageOps

from finetune.audit.collection import Collection, as_picture
from finetune.audit.findings import KINDS, Finding
from finetune.audit.text import grouped
from finetune.reporting.report.page import TEMPLATES

SIDE, QUALITY = 144, 60  # pixels of a thumbnail's longer side; of WebP's 100
SHOWN = 60  # findings of a kind


def render(source: str, data: Collection, summary: dict[str, str], findings: list[Finding]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # file and class names may be a stranger's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("audit.html").render(
        source=source,
        summary=summary,
        classes=data.classes,
        counts=data.counts(),
        sections=[_section(data, kind, found) for kind, found in grouped(findings).items()],
        style=(TEMPLATES / "page.css").read_text(),
    )


def _section(data: Collection, kind: str, found: list[Finding]) -> dict[str, Any]:
    title, advice = KINDS[kind]
    entries = [{"text": one.text, "pictures": [_address(data, k) for k in one.images]} for one in found[:SHOWN]]
    return {"kind": kind, "title": title, "advice": advice, "count": len(found), "entries": entries}


def _address(data: Collection, k: int) -> str:
    """A thumbnail as an address of the `data:` scheme; empty where the image cannot be read any more."""
    try:
        picture = ImageOps.exif_transpose(as_picture(data.items[k])).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
    except (OSError, SyntaxError, ValueError):
        return ""
    file = io.BytesIO()
    picture.save(file, "webp", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
