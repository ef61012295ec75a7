"""A list of proposed removals and relabels, as CSV, which a person edits and training takes: --exclude."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.audit.collection import Collection
from finetune.audit.findings import Finding
from finetune.audit.label_errors import LabelError
from finetune.data.exclusions import COLUMNS
from finetune.runtime import files


class Fix(NamedTuple):
    """A row of the list; the columns of `exclusions.COLUMNS`."""

    path: str
    action: str
    label: str
    new_label: str
    reason: str


def propose(data: Collection, findings: list[Finding], errors: dict[int, LabelError]) -> list[Fix]:
    """At most one fix of each image; `errors` has likely label errors by the position of their image.

    Of copies in different splits the one that is trained on goes, so that the score is of the same images as before,
    but unseen. Of copies in one class the second goes, of copies in different classes both: delete a line to keep one.
    Dark, over-exposed and blurry images stay: whether they are bad depends on what the model is for.
    """
    fixes: dict[str, Fix] = {}
    for finding in findings:
        for fix in _fixes(data, finding):
            fixes.setdefault(fix.path, fix)
    for k, error in errors.items():
        name = data.names[k]
        fixes.setdefault(name, Fix(name, "relabel", error.label, error.predicted, error.reason))
    return list(fixes.values())


def _fixes(data: Collection, finding: Finding) -> Iterator[Fix]:
    def remove(k: int, reason: str) -> Fix:
        return Fix(data.names[k], "remove", data.classes[data.labels[k]], "", reason)

    if finding.kind == "undecodable":
        yield Fix(finding.path, "remove", "", "", "it does not decode")
    elif finding.kind == "uniform":
        yield remove(finding.images[0], "it is uniform")
    elif finding.kind == "leak":
        first, second = finding.images
        # Images are in the order of their splits: training, validation, test.
        yield remove(first, f"a copy of it is in {data.splits[second]}: {data.names[second]}")
    elif finding.kind == "duplicate":
        first, second = finding.images
        yield remove(second, f"a copy of {data.names[first]}")
    elif finding.kind == "conflict":
        for k, other in (finding.images, finding.images[::-1]):
            yield remove(k, f"a copy of it is in class '{data.classes[data.labels[other]]}': {data.names[other]}")


def read(path: Path, rows: list[Fix]) -> list[Fix]:
    """The rows of an earlier list, without those of images that `rows` fix anew."""
    found = files.read_csv(files.expanded(path), ("path", "action"), f"--exclude {path}", errors="surrogateescape")
    fixed = {row.path for row in rows}
    return [Fix(*(row.get(name) or "" for name in COLUMNS)) for row in found if row["path"] not in fixed]


def write(path: Path, fixes: list[Fix]) -> None:
    """Write the list as CSV, whole or not at all; in UTF-8, but for names of files that are not."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows(fixes)
    with files.atomic(path) as temporary:
        temporary.write_bytes(text.getvalue().encode(errors="surrogateescape"))
