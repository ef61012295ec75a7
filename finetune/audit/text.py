"""The audit as text and as JSON."""

from __future__ import annotations

from typing import Any

from finetune.audit.findings import KINDS, Finding
from finetune.errors import printable

SHOWN = 5  # findings of a kind on the terminal


def grouped(findings: list[Finding]) -> dict[str, list[Finding]]:
    """The findings of each kind that there is, in the order of KINDS."""
    groups = {kind: [finding for finding in findings if finding.kind == kind] for kind in KINDS}
    return {kind: found for kind, found in groups.items() if found}


def show(source: str, summary: dict[str, str], findings: list[Finding]) -> str:
    """The audit for a terminal: the summary, then each kind with its first findings."""
    width = max(map(len, summary))
    lines = [source, *(f"  {name:<{width}}  {value}" for name, value in summary.items())]
    for kind, found in grouped(findings).items():
        title, advice = KINDS[kind]
        lines += ["", f"{title}: {len(found)}. {advice}", *(f"  {one.text}" for one in found[:SHOWN])]
        lines += [f"  and {len(found) - SHOWN} more"] * (len(found) > SHOWN)
    return printable("\n".join(lines if findings else [*lines, "", "Nothing was found."]))


def as_json(
    source: str, classes: list[str], counts: dict[str, list[int]], findings: list[Finding], names: list[str]
) -> dict[str, Any]:
    """Everything, with the images of each finding by name."""
    return {
        "data": source,
        "classes": classes,
        "counts": counts,
        "findings": [
            {
                "kind": finding.kind,
                "text": finding.text,
                "images": [names[k] for k in finding.images] or ([finding.path] if finding.path else []),
            }
            for finding in findings
        ],
    }
