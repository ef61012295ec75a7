"""What the audit says before each run, in three lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.audit import collection, findings
from finetune.data.types import ImageSet

MOST = 200_000  # images; among more, copies are looked for by command only
QUALITY = ("uniform", "dark", "bright", "blurry")


@dataclass(frozen=True)
class Brief:
    """The audit of a run's images, in short."""

    lines: dict[str, str]
    """By name, as the plan shows them."""
    leaked: dict[str, list[int]] = field(default_factory=dict)
    """The positions in the validation and test splits of images that have a copy among the training images."""


def brief(imageset: ImageSet) -> Brief:
    """Look at a run's images. Of arrays, or of more than `MOST` files, only classes are counted."""
    counts = [imageset.splits["train"].labels.count(label) for label in range(len(imageset.classes))]
    lines = {"balance": f"{min(counts)} to {max(counts)} training images of a class"}
    splits = imageset.splits.values()
    if not all(split.are_files for split in splits) or sum(len(split.labels) for split in splits) > MOST:
        return Brief(lines)
    data = collection.collect(imageset, None)
    found = findings.find(data)
    count = {kind: sum(finding.kind == kind for finding in found) for kind in findings.KINDS}
    dull, copies = sum(count[kind] for kind in QUALITY), count["duplicate"] + count["conflict"]
    seen = [f"uniform, dark, over-exposed or blurry images: {dull}"] * bool(dull)
    seen += [f"copies within a split: {copies}, {count['conflict']} of them in different classes"] * bool(copies)
    lines["quality"] = ("; ".join(seen) or "no dull image, no copies within a split") + _more(bool(seen))
    leaked = {name: _leaked(data, found, name) for name in imageset.splits if name != "train"}
    words = [f"{len(ks)} of {data.splits.count(name)} in {name}/" for name, ks in leaked.items() if ks]
    lines["leaks"] = "no image of another split is a copy of a training image"
    if words:
        lines["leaks"] = (
            f"copies of training images: {', '.join(words)}; the score is also told without them{_more(True)}"
        )
    return Brief(lines, leaked)


def _more(wanted: bool) -> str:
    return " (python -m finetune check)" if wanted else ""


def _leaked(data: collection.Collection, found: list[findings.Finding], split: str) -> list[int]:
    """Positions in a split of images that have a copy in the training split."""
    leaks = (finding.images for finding in found if finding.kind == "leak")
    direct = {second for first, second in leaks if (data.splits[first], data.splits[second]) == ("train", split)}
    # Of images of the same content, only the first is paired with near copies.
    contents = {data.facts["digest"][k].tobytes() for k in direct}
    start, count = data.splits.index(split), data.splits.count(split)
    return [k for k in range(count) if data.facts["digest"][start + k].tobytes() in contents]
