"""What an audit finds in a set of images. The bounds were chosen by looking: docs/data.md says on what."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from finetune.audit.collection import Collection
from finetune.data.duplicates import UNIFORM, Copy, copies
from finetune.data.facts import TURN_NAMES

DARK, BRIGHT = 64, 192  # grey levels: nearly all of a dark image lies below, of an over-exposed one above
BLURRED = 0.9  # of the sharpness that `facts` measures
NARROW = 3.0  # long side by short side
SMALL = 32  # pixels of the short side
IMBALANCE = 10.0  # images of the largest class by those of the smallest
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg"), "MPO": ("jpg", "jpeg"), "PNG": ("png",), "PPM": ("ppm", "pgm"), "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"), "WEBP": ("webp",),
}  # fmt: skip


class Kind(NamedTuple):
    """A kind of finding."""

    title: str
    advice: str


KINDS = {
    "leak": Kind("Copies in different splits", "The score of such images is that of images seen in training."),
    "conflict": Kind("Copies in different classes", "At most one of the labels is right."),
    "label": Kind("Likely label errors", "Held-out predictions disagree with the label (confident learning)."),
    "undecodable": Kind("Files that do not decode", "Training refuses them, or skips them: --skip-bad-images."),
    "duplicate": Kind("Copies within a class", "Such an image counts as several."),
    "uniform": Kind("Uniform images", "They hold one grey level."),
    "dark": Kind("Dark images", f"95 % of each is darker than {DARK} of 255."),
    "bright": Kind("Over-exposed images", f"95 % of each is lighter than {BRIGHT} of 255."),
    "blurry": Kind("Blurry images", "They have no sharp edge."),
    "disguised": Kind("Files of another type than their name says", "They are read by their content."),
    "animated": Kind("Files of several frames", "Only the first one is read."),
    "narrow": Kind(f"Images longer than {NARROW:g} : 1", "--fit crop cuts most of them away; see --fit pad."),
    "small": Kind(f"Images of less than {SMALL} pixels", "They are enlarged."),
    "classes": Kind("Class names that are hard to tell apart", "Are they one class?"),
    "imbalance": Kind("Imbalance", "Consider --class-weights or --balanced, and --best-by balanced_accuracy."),
    "leftover": Kind("Files and folders that are not read", "Delete them, or move them where they belong."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str
    """A key of KINDS."""
    text: str
    images: tuple[int, ...] = ()
    """Positions in the collection."""
    path: str = ""
    """Of a file that is no image of the collection."""


def find(data: Collection) -> list[Finding]:
    """All findings but label errors and leftovers, in the order of KINDS."""
    found = [*_copies(data, copies(data.facts)), *_quality(data), *_files(data), *_classes(data)]
    found += [Finding("undecodable", f"{path}: {why}", path=path) for path, why in data.bad.items()]
    return ordered(found)


def ordered(found: list[Finding]) -> list[Finding]:
    """The findings in the order of KINDS; those of a kind stay as they are."""
    position = {kind: k for k, kind in enumerate(KINDS)}
    return sorted(found, key=lambda finding: position[finding.kind])


def summary(data: Collection) -> dict[str, str]:
    """Facts of all images together, by name."""
    widths, heights = data.facts["width"].astype(int), data.facts["height"].astype(int)
    sizes = Counter(zip(widths.tolist(), heights.tolist(), strict=True))
    common, times = sizes.most_common(1)[0]
    found = {
        split: f"{sum(counts)} images, {min(counts)} to {max(counts)} of a class"
        for split, counts in data.counts().items()
    }
    ratios = widths / heights
    found["size"] = (
        f"{widths.min()} × {heights.min()} to {widths.max()} × {heights.max()} pixels, most often "
        f"{common[0]} × {common[1]} ({times}); aspect ratio {ratios.min():.2f} to {ratios.max():.2f}"
    )
    found["mode"] = counted(data.facts["mode"])
    if data.are_files:
        found["type"] = counted(data.facts["format"])
        turned, profiles = int((data.facts["orientation"] > 1).sum()), int(data.facts["profile"].sum())
        found["metadata"] = f"{turned} turned upright by EXIF; {profiles} with a colour profile, which is ignored"
    return found


def counted(values: np.ndarray) -> str:
    """The values of a column with their counts, most frequent first."""
    return ", ".join(
        f"{value.decode() or 'unknown'} {count}" for value, count in Counter(values.tolist()).most_common()
    )


# ---- copies ----------------------------------------------------------------------------------------------------------
def _copies(data: Collection, pairs: list[Copy]) -> Iterator[Finding]:
    """A finding for each pair: a leak if its splits differ, else a conflict if its classes do."""
    for first, second, turn, exact in pairs:
        how = "the same file content" if exact else "nearly the same picture"
        how += f", {TURN_NAMES[turn]}" if turn else ""
        kind = "duplicate"
        if data.splits[first] != data.splits[second]:
            kind = "leak"
        elif data.labels[first] != data.labels[second]:
            kind = "conflict"
        if kind == "leak" and data.labels[first] != data.labels[second]:
            how += "; the classes differ too"
        yield Finding(kind, f"{data.describe(first)} and {data.describe(second)}: {how}", (first, second))


# ---- single images ---------------------------------------------------------------------------------------------------
def _quality(data: Collection) -> Iterator[Finding]:
    facts = data.facts
    uniform = facts["contrast"] < UNIFORM
    yield from _each(data, "uniform", uniform, lambda k: "")
    yield from _each(
        data, "dark", (facts["lightest"] < DARK) & ~uniform, lambda k: f"95 % below {facts['lightest'][k]:.0f}"
    )
    bright = (facts["darkest"] > BRIGHT) & ~uniform
    yield from _each(data, "bright", bright, lambda k: f"95 % above {facts['darkest'][k]:.0f}")
    # Images of a few pixels have no fine edges that could be missing.
    large = np.minimum(facts["width"], facts["height"]) > SMALL
    blurry = (facts["sharpness"] < BLURRED) & large & ~uniform
    yield from _each(data, "blurry", blurry, lambda k: f"sharpness {facts['sharpness'][k]:.2f}")


def _files(data: Collection) -> Iterator[Finding]:
    facts = data.facts
    widths, heights = facts["width"].astype(float), facts["height"].astype(float)
    ratio = np.maximum(widths, heights) / np.minimum(widths, heights)
    yield from _each(data, "narrow", ratio > NARROW, lambda k: f"{facts['width'][k]} × {facts['height'][k]}")
    small = np.minimum(widths, heights) < SMALL
    if small.mean() < 0.5:  # else the whole set is of small images, which is no fault of theirs
        yield from _each(data, "small", small, lambda k: f"{facts['width'][k]} × {facts['height'][k]}")
    yield from _each(data, "animated", facts["frames"] > 1, lambda k: f"{facts['frames'][k]} frames")
    if data.are_files:
        kinds = [kind.decode() for kind in facts["format"].tolist()]
        disguised = [
            name.rpartition(".")[2].lower() not in EXTENSIONS.get(kind, ())
            for name, kind in zip(data.names, kinds, strict=True)
        ]
        yield from _each(data, "disguised", np.array(disguised), lambda k: f"its content is {kinds[k]}")


def _each(data: Collection, kind: str, chosen: np.ndarray, detail: Callable[[int], str]) -> Iterator[Finding]:
    for k in np.flatnonzero(chosen).tolist():
        more = detail(k)
        yield Finding(kind, data.describe(k) + (f": {more}" if more else ""), (k,))


# ---- classes ---------------------------------------------------------------------------------------------------------
def _classes(data: Collection) -> Iterator[Finding]:
    alike: dict[str, list[str]] = {}
    for name in data.classes:
        alike.setdefault(plain(name), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding("classes", " and ".join(map(repr, names)))
    for split, counts in data.counts().items():
        most, least = max(counts), min(counts)
        if most > IMBALANCE * max(least, 1):
            large, small = data.classes[counts.index(most)], data.classes[counts.index(least)]
            yield Finding("imbalance", f"{split}: {most} images of '{large}', {least} of '{small}'")


def plain(name: str) -> str:
    """A class name without case, accents, blanks, signs and the differences of Unicode's forms."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    kept = [letter for letter in letters if unicodedata.category(letter)[0] in "LN"]
    return "".join(kept) or name
