"""Copies among images: of the same content, and of nearly the same picture, also mirrored or turned by 90 degrees.

Two images are near copies if their perceptual hashes differ in at most DISTANCE of 64 bits and their thumbnails
correlate by CORRELATION. Of 220 photographs of Caltech-101 and of ants and bees, altered in one way each, these two
find all that were compressed at JPEG quality 10, halved, squeezed to a square, made grey or paler, 92 % of those with a
line of text written on them, 73 % of those 1.3 times as bright, 40 % of those cropped by 2 % a side, and none cropped
by 5 %. Of distinct objects in the same pose before a plain background some are called copies.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from finetune.data.facts import TURNS

DISTANCE = 4  # bits
CORRELATION = 0.98
UNIFORM = 5.0  # grey levels of standard deviation; the hash of an image with less is that of its noise
PARTS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # first bit and number of bits
MOST = 1 << 22  # candidates compared at once, which bounds memory
CHUNK = 1 << 16  # pairs whose thumbnails are compared at once
MOST_COPIES = 1_000_000  # pairs of near copies: where more are found, as among a film's frames, the search ends


class Copy(NamedTuple):
    """A pair of images, by position; the second is a copy of the first."""

    first: int
    second: int
    turn: int
    """How the second is turned: a position in `facts.TURNS`."""
    exact: bool
    """Whether the files' content is the same."""


def copies(facts: np.ndarray) -> list[Copy]:
    """The pairs of copies among images with these facts, (N,) of `facts.FACTS`, in order.

    Of several images of the same content each is paired with the first, and only the first with near copies.
    """
    _, firsts, groups = np.unique(facts["digest"], axis=0, return_index=True, return_inverse=True)
    first_of = firsts[groups.ravel()]  # (N,)
    found = [Copy(int(first_of[k]), int(k), 0, True) for k in np.flatnonzero(first_of != np.arange(len(facts)))]
    kept = np.sort(firsts)
    kept = kept[facts["contrast"][kept] >= UNIFORM]
    hashes, thumbnails = facts["hashes"][kept], facts["thumbnail"][kept]
    near: dict[tuple[int, int], int] = {}  # rows of a pair, and how the second is turned
    for turn, first, second in _near(hashes):
        alike = _correlations(_turned(thumbnails[first], turn), thumbnails[second]) >= CORRELATION
        for pair in zip(kept[first[alike]].tolist(), kept[second[alike]].tolist(), strict=True):
            near.setdefault(pair, turn)
        if len(near) >= MOST_COPIES:
            break
    return sorted(found + [Copy(*pair, turn, False) for pair, turn in near.items()])


def _near(hashes: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each turn with pairs of rows, the smaller first, whose hashes differ in at most DISTANCE bits; some repeatedly.

    `hashes` is (N, turns). Hashes that differ in at most four bits are equal in one of five parts at least, so only
    those are compared (multi-index hashing, Norouzi et al. 2012).
    """
    assert len(PARTS) > DISTANCE
    count = len(hashes)
    for shift, bits in PARTS:
        keys = (hashes >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
        order = np.argsort(keys[:, 0], kind="stable")
        ordered = keys[order, 0]
        for turn in range(len(TURNS)):
            begin = np.searchsorted(ordered, keys[:, turn], "left")
            sizes = np.searchsorted(ordered, keys[:, turn], "right") - begin
            ends = np.cumsum(sizes)
            start = 0
            while start < count:
                before = ends[start - 1] if start else 0
                stop = max(int(np.searchsorted(ends, before + MOST, "right")), start + 1)
                first = np.repeat(np.arange(start, stop), sizes[start:stop])
                within = np.arange(len(first)) - (ends - sizes - before)[first]  # position among its candidates
                second = order[begin[first] + within]
                near = first < second
                first, second = first[near], second[near]
                near = np.flatnonzero(np.bitwise_count(hashes[first, turn] ^ hashes[second, 0]) <= DISTANCE)
                for part in range(0, len(near), CHUNK):
                    chosen = near[part : part + CHUNK]
                    yield turn, first[chosen], second[chosen]
                start = stop


def _turned(thumbnails: np.ndarray, turn: int) -> np.ndarray:
    """Thumbnails, (N, H, W), turned as Pillow turns an image."""
    swapped = thumbnails.swapaxes(1, 2)
    return (
        thumbnails, thumbnails[:, :, ::-1], thumbnails[:, ::-1], thumbnails[:, ::-1, ::-1],
        swapped, swapped[:, ::-1], swapped[:, :, ::-1], swapped[:, ::-1, ::-1],
    )[turn]  # fmt: skip


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of thumbnails, both (N, H, W): (N,). 0 where one of a pair is uniform."""
    a, b = (part.reshape(len(part), 256).astype(np.float32) for part in (first, second))
    a, b = (part - part.mean(1, keepdims=True) for part in (a, b))
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / np.where(norms > 0, norms, 1)
