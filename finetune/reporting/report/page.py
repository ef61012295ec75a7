"""The HTML page of a report."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2

from finetune.reporting import comparison, palette, terminal
from finetune.reporting.report import curves, headline
from finetune.reporting.report.line_chart import draw
from finetune.reporting.report.pictures import Pictures
from finetune.reporting.report.sections import SECTIONS, Section
from finetune.reporting.report.subject import Subject

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Report:
    """The part of the page that tells of one subject."""

    subject: Subject
    name: str
    headline: headline.Headline
    sections: list[Section]


def report(subject: Subject, name: str, pictures: Pictures) -> Report:
    """The report of one subject, ready for the templates."""
    found = [section(subject, pictures) for section in SECTIONS]
    return Report(subject, name, headline.of(subject), [section for section in found if section])


def make_environment() -> jinja2.Environment:
    """What reads the templates."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # file and class names, paths and settings may be a stranger's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(reports: list[Report], options: dict[str, Any]) -> str:
    """The page; of several reports with a comparison above. `options` are the limits that the page states."""
    environment = make_environment()
    environment.filters |= {
        "percent": curves.percent,
        "probability": curves.probability,
        "duration": terminal.duration,
        "typed": comparison.as_typed,
        "short": "{:g}".format,
    }
    script = (TEMPLATES / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        reports=reports,
        comparison=_comparison(reports) if len(reports) > 1 else None,
        title=reports[0].name if len(reports) == 1 else f"{reports[0].name} and {len(reports) - 1} more",
        options=options,
        colors={"light": palette.ON_LIGHT, "dark": palette.ON_DARK},
        style=(TEMPLATES / "page.css").read_text(),
        script=script,
        script_hash=f"sha256-{digest}",
        now=datetime.now(),
        version=_version(),
    )


def _comparison(reports: list[Report]) -> dict[str, Any]:
    """Results and differing settings of all runs, and their curves."""
    runs = [report.subject.run for report in reports]
    settings, measures = comparison.differing(runs), comparison.MEASURES
    found = [dict(zip(["run", *settings, *measures], comparison.row(run, settings), strict=True)) for run in runs]
    for row, report in zip(found, reports, strict=True):
        row["run"] = report.name + ("" if report.subject.ended else " (not ended)")
        row["95 % interval"] = _interval(report)
    accuracies = [name for name in measures if "accuracy" in name]
    others = [name for name in measures if "accuracy" not in name]
    shown = [name for name in (*accuracies, "95 % interval", *others) if any(row[name] for row in found)]
    return {
        "header": ["run", *shown, *settings],
        "rows": [[row[name] for name in ("run", *shown, *settings)] for row in found],
        "measures": len(shown),
        "charts": [draw(chart) for chart in curves.of_runs([report.name for report in reports], runs)],
    }


def _interval(report: Report) -> str:
    """The interval of a report's headline, in words."""
    if report.headline.interval is None:
        return ""
    low, high = map(curves.percent, report.headline.interval)
    result = report.subject.result
    return f"{low} to {high}" + (" (test)" if result and result.split == "test" else "")


def _version() -> str:
    try:
        return version("finetune-recipes")
    except PackageNotFoundError:  # run from the project's folder
        return ""
