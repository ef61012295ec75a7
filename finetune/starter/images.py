"""The starter set: invented beetles, drawn by code, to show transfer learning without a download.

A class is a species: its genes fix the outline, legs, horns and wing-case pattern, and whether its marks are light on
dark or dark on light. An image is one individual, with hues, pose, size, light and litter of its own. Hues are random,
so they tell nothing of the class. The target set is small; the source set is for pretraining.
"""

import colorsys
import tempfile
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Part = Literal["target", "source"]
Array = NDArray[np.float64]  # polygons have shape (corners, 2), with columns x, y
Colour = tuple[int, ...]  # red, green, blue in 0..255
Rng = np.random.Generator

VERSION = 1  # part of every random key: raise it when a change alters the pictures
TARGET = ["aurelia", "borealis", "coronata", "dorsata", "fasciata", "gemmata", "lunaris", "nodosa", "picta", "serrata"]
STEMS = ["al", "bru", "cal", "dem", "fer", "gal", "hel", "mar", "tor", "vel"]
ENDINGS = ["bina", "dosa", "lata", "mera", "nica", "tula"]
SPECIES: dict[Part, dict[str, int]] = {  # class names and species numbers; no number is in both parts
    "target": {name: number for number, name in enumerate(TARGET)},
    "source": {a + b: number for number, (a, b) in enumerate(product(STEMS, ENDINGS), start=len(TARGET))},
}
COUNTS = {"target": {"train": 36, "val": 20}, "source": {"train": 220, "val": 20}}  # images per class
FIRST = {"train": 0, "val": 1_000_000}  # first individual; far apart, so that the splits never share one
PATTERNS = ("spots", "bands", "rings", "stripes", "diamonds", "chevrons", "checks", "eyes")
BLACK, BICUBIC = (14, 12, 10), Image.Resampling.BICUBIC
T = np.linspace(0, 1, 8)[:, None]  # steps along a curve


def genes(species: int, organ: int) -> Rng:
    """The random numbers that a species' individuals share, for one organ: 1 body, 2 limbs, 3 pattern."""
    return np.random.default_rng([VERSION, species, 0, organ])  # four words: individuals' keys have three


def blob(x: float, y: float, rx: float, ry: float, corners: int = 14) -> Array:
    """An ellipse as a polygon; four corners make a diamond."""
    turn = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


def blade(start: Array, bend: Array, end: Array, *widths: float) -> Array:
    """A curved strip from start to end, drawn towards bend on its way, its widths spread evenly along it."""
    line = (1 - T) ** 2 * start + 2 * T * (1 - T) * bend + T**2 * end
    along = (1 - T) * (bend - start) + T * (end - bend)
    half = np.interp(T, np.linspace(0, 1, len(widths)), widths) / 2
    side = along[:, ::-1] * [1, -1] * half / np.hypot(*along.T)[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def mirrored(half_widths: Array, top: float, length: float) -> Array:
    """The polygon, symmetric about x = 0, with these half-widths at even steps from y = top on."""
    right = np.stack([half_widths, np.linspace(top, top + length, len(half_widths))], 1)
    return np.concatenate([right, right[::-1] * [-1, 1]])


def pattern(species: int, rng: Rng) -> list[tuple[Array, int]]:
    """The right wing case's marks: polygons in drawing order, each in the marks' colour (1) or the shell's (0)."""
    # x runs from 0 at the seam to 1 at the rim, y from 0 at the shoulders to 1 at the tail.
    out: list[tuple[Array, int]] = []
    kind, gene = PATTERNS[species % len(PATTERNS)], genes(species, 3)
    n, layout, fat = gene.random(6), gene.random((4, 2)) < 0.7, rng.normal(1, 0.1)
    if kind in ("bands", "chevrons", "stripes"):
        count, along = 1 + int(n[0] * 3), np.linspace(0, 1.1, 10)
        slope = (0.7 * n[1] + 0.25) * (-1) ** (n[1] < 0.5) if kind == "chevrons" else 0.0
        wave = slope * (along - 0.5) + 0.06 * n[2] * np.cos(np.pi * (1 + 4 * n[3]) * along)
        half = np.array([0, (0.15 + 0.2 * n[4]) * fat / (count + 0.6)])
        for k in range(count):
            line = np.stack([along, (k + 0.35 + 0.3 * n[5]) / count + wave + rng.normal(0, 0.012)], 1)
            strip = np.concatenate([line - half, (line + half)[::-1]])
            out.append((strip[:, ::-1] if kind == "stripes" else strip, 1))
        return out
    rows, columns = (1 + int(n[0] * 2), 1) if kind == "eyes" else (2 + int(n[0] * 3), 1 + int(n[1] * 2))
    rings, corners = {"rings": 2, "eyes": 3}.get(kind, 1), 4 if kind in ("diamonds", "checks") else 14
    for row, column in product(range(rows), range(columns)):
        if (row + column) % 2 if kind == "checks" else layout[row, column] or rows * columns < 4:
            x = (column + 0.5) / columns + 0.1 * (n[2] - 0.5) + rng.normal(0, 0.025)
            y = 0.08 + 0.84 * (row + 0.5) / rows + 0.1 * (n[3] - 0.5) + rng.normal(0, 0.012)
            radii = np.minimum([0.5 / columns, 0.4 / rows], [0.36, 0.17])
            radii *= 1.3 if kind == "checks" else (0.7 + 0.35 * n[4]) * fat
            for k in range(rings):
                rx, ry = radii * (1 - k / rings)
                out.append((blob(x, y, rx, ry, corners), 1 - k % 2))
    return out


def limbs(species: int, head: float, chest: float, top: float, rng: Rng) -> list[Array]:
    """Legs, antenna and horn of the right side, given half-widths of head and chest, and the head's top."""
    gene = genes(species, 2)
    out: list[Array] = []
    leg, thick, fold = gene.uniform([0.2, 0.03, 0.3], [0.34, 0.055, 1.3])  # length, width, knee in radians
    for y, lean, stretch in ((-0.08, -0.75, 1.0), (0.04, 0.1, 1.0), (0.16, 0.8, 1.25)):
        lean += rng.normal(0, 0.14)
        shin = lean + fold * rng.normal(1, 0.15) * np.sign(y)  # only the front legs point forwards
        hip = np.array([chest * 0.6, y])
        knee = hip + leg * stretch * np.array([np.cos(lean), np.sin(lean)])
        foot = knee + leg * stretch * 0.7 * np.array([np.cos(shin), np.sin(shin)])
        out += [blade(hip, (hip + knee) / 2, knee, thick * 1.7, thick)]
        out += [blade(knee, (knee + foot) / 2, foot, thick, 0.012)]
    reach, bow, way = gene.uniform(0.2, 0.45), gene.uniform(-0.2, 0.25), 0.75 + rng.normal(0, 0.12)
    root = np.array([head * 0.6, top + 0.03])
    end = root + reach * np.array([np.sin(way), -np.cos(way)])
    out.append(blade(root, (root + end) / 2 + bow * np.array([np.cos(way), np.sin(way)]), end, 0.02, 0.014))
    out += [blob(end[0], end[1], 0.04, 0.04, 8)] * (gene.random() < 0.5)  # some antennae end in clubs
    h = gene.uniform(0.16, 0.34)
    horns = (  # start, bend, end and two widths, measured from the middle of the head's front
        ([head * 0.5, 0.03], [head + h * 0.8, -h * 0.4], [head * 0.1, -h], 0.07, 0.015),  # a stag's jaws
        ([0, 0.1], [0, -h / 2], [0, -h], 0.12, 0.02),  # a rhinoceros's horn
        ([head * 0.6, 0.04], [head * 0.7, -h * 0.2], [head * 0.4, -h * 0.5], 0.1, 0.01),  # pincers
    )
    for *points, w0, w1 in horns[gene.integers(4) :][:1]:  # the fourth kind has none
        out.append(blade(*(np.array(point) + np.array([0, top]) for point in points), w0, w1))
    return out


def hsv(rng: Rng, *ranges: tuple[float, float]) -> Colour:
    """A colour drawn from ranges of hue, saturation and value, each in 0..1."""
    return tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(*(rng.uniform(*r) for r in ranges)))


def fill(picture: Image.Image, shape: Array, colour: Colour | int) -> None:
    """Fill a polygon, given in pixels."""
    ImageDraw.Draw(picture).polygon(shape.ravel().tolist(), fill=colour)


def glow(picture: Image.Image, shape: Array, colour: Colour, strength: float) -> None:
    """Lay a soft-edged colour over a polygon; the mask is made at an eighth of the size, which is quick."""
    mask = Image.new("L", (picture.width // 8, picture.height // 8))
    fill(mask, shape / 8, int(255 * strength))
    picture.paste(colour, (0, 0), mask.filter(ImageFilter.BoxBlur(1)).resize(picture.size, BICUBIC))


def litter(picture: Image.Image, kinds: list[str], rng: Rng) -> None:
    """Strew leaves, pebbles and blades of grass over the picture, each with a thin shadow."""
    for kind in kinds:  # sizes are in pixels
        at, step = rng.uniform(-0.1, 1.1, 2) * picture.size, rng.normal(0, 18, 2)
        if kind == "pebble":
            shape, colour = blob(*at, *rng.uniform(4, 13, 2)), hsv(rng, (0.05, 0.15), (0, 0.2), (0.3, 0.8))
        elif kind == "leaf":
            shape = blade(at - step, at + rng.normal(0, 5, 2), at + step, 2, 2, 14, 22, 24, 20, 12, 0)
            colour = hsv(rng, (0.02, 0.36), (0.35, 0.8), (0.3, 0.75))
        else:
            shape = blade(at - step * 4, at + rng.normal(0, 20, 2), at + step * 4, rng.uniform(5, 13), 1)
            colour = hsv(rng, (0.13, 0.36), (0.3, 0.7), (0.3, 0.75))
        fill(picture, shape + 1.5, BLACK)
        fill(picture, shape, colour)


def beetle(picture: Image.Image, species: int, rng: Rng) -> None:
    """Draw one individual. In body coordinates it is about 0.9 long, and its wing cases begin at y = 0."""
    gene = genes(species, 1)
    size = gene.uniform([[0.07, 0.08], [0.14, 0.12], [0.2, 0.46]], [[0.13, 0.13], [0.25, 0.24], [0.33, 0.66]])
    (head, head_y), (chest, chest_y), (case, case_y) = size * rng.normal(1, 0.04, (3, 2))
    top, total = -chest_y - head_y, head_y + chest_y + case_y
    angle, bow = rng.normal(0, [0.35, 0.1])
    scale = rng.uniform(0.7, 0.92) * min(picture.size) / total
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = (0.5 + rng.normal(0, 0.06, 2)) * picture.size

    def place(shape: Array) -> Array:
        """Body coordinates to pixels; a body is seldom quite straight, hence the bow."""
        x, y = (shape - [0, top + total / 2]).T
        return np.stack([x + bow * y**2, y], 1) @ turn + middle

    dark, light = hsv(rng, (0, 1), (0.4, 1), (0.08, 0.36)), hsv(rng, (0, 1), (0.15, 0.85), (0.8, 1))
    shell, mark = (dark, light) if gene.random() < 0.5 else (light, dark)
    skin, sign = (dark, light) if gene.random() < 0.5 else (light, dark)
    leather = hsv(rng, (0, 1), (0.2, 0.8), (0.06, 0.3))
    y = np.linspace(0, 1, 22)
    taper, blunt, front, bulge = gene.uniform([0.75, 0.35, 0.5, 0], [1.4, 0.8, 1, 0.08])
    ripple, ripples = gene.uniform([0, 1], [0.08, 3.5])
    widths = case * np.sin(np.pi * (0.1 + 0.9 * y) ** taper).clip(0) ** blunt
    widths *= 1 + ripple * np.cos(2 * np.pi * ripples * y) + 0.01 * np.cumsum(rng.normal(0, 1, 22))
    cases = place(mirrored(widths, -0.02, case_y + 0.02))
    chests = chest * (front + (1 - front) * y) + bulge * np.sin(np.pi * y) - 0.03 * (np.abs(y - 0.5) > 0.45)
    thorax = place(mirrored(chests, -chest_y - 0.01, chest_y + 0.03))

    # The light comes from any side; shadows lie behind the body, away from it.
    sun = scale * 0.09 * np.array([np.cos(9 * angle), np.sin(9 * angle)])
    glow(picture, cases - sun, BLACK, 0.7)
    glow(picture, thorax - sun, BLACK, 0.7)
    for side in (1, -1):
        for shape in limbs(species, head, chest, top, rng):
            fill(picture, place(shape * [side, 1]), leather)
    fill(picture, place(blob(0, top + head_y * 0.6, head, head_y * 0.65)), leather)
    fill(picture, thorax, skin)
    collars = ((), ((0, 0.3, 0.25),), ((-0.5, 0.2, 0.22), (0.5, 0.2, 0.22)), ((0, 0.16, 0.45),))
    for x, wide, long in collars[gene.integers(4)]:
        fill(picture, place(blob(x * chest, -0.5 * chest_y, wide * chest, long * chest_y)), sign)

    # The pattern is painted on a layer of its own, which is then cut out along the wing cases.
    layer, mask = Image.new("RGB", picture.size, shell), Image.new("1", picture.size)
    for shape, ink in pattern(species, rng):
        across = shape[:, 0] * np.interp(shape[:, 1], y, widths)
        for side in (1, -1):
            fill(layer, place(np.stack([side * across, shape[:, 1] * case_y], 1)), mark if ink else shell)
    fill(layer, place(blade(*np.array([[0, 0], [0, 0.3], [0, case_y]]), 0.012, 0.02)), BLACK)
    glow(layer, cases * 0.45 + (cases.mean(0) + 4 * case * sun) * 0.55, (255,) * 3, rng.uniform(0.2, 0.6))
    fill(mask, cases, 1)
    picture.paste(layer, (0, 0), mask)
    ImageDraw.Draw(picture).polygon(cases.ravel().tolist(), outline=BLACK, width=2)


def draw(species: int, individual: int) -> Image.Image:
    """One individual, about 100 pixels square. A pure function: the same numbers give the same pixels."""
    rng = np.random.default_rng([VERSION, species, individual])
    width, height = size = int(rng.integers(88, 113)), int(rng.integers(88, 113))
    # The ground is drawn small, to look out of focus; the beetle is drawn double, to get smooth edges.
    earth = [Image.new("RGB", size, hsv(rng, (0.06, 0.22), (0.1, 0.45), (0.25, 0.7))) for _ in range(2)]
    grains = [Image.fromarray(rng.integers(0, 256, (k, k), dtype=np.uint8)) for k in (6, 45)]
    coarse, fine = (grain.resize(size, BICUBIC) for grain in grains)
    picture = Image.composite(earth[0], earth[1], Image.blend(coarse, fine, 0.45))
    litter(picture, rng.choice(["leaf", "pebble", "grass"], rng.integers(4, 11)).tolist(), rng)
    picture = picture.resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
    beetle(picture, species, rng)
    litter(picture, ["grass"] * rng.integers(0, 2), rng)
    picture = picture.reduce(2).filter(ImageFilter.GaussianBlur(max(0, rng.uniform(-0.8, 0.8))))
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    light = rng.uniform(0.75, 1.2) * (1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y)
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(rng.uniform(2, 7))
    pixels = np.asarray(picture) * light[..., None].astype(np.float32) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(folder: Path, part: Part) -> None:
    """Write a part as folder/train/<class>/*.jpg and folder/val/<class>/*.jpg. Raises `OSError` if folder exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written under a temporary name, then renamed: the folder is complete or missing.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        for (name, species), (split, count) in product(SPECIES[part].items(), COUNTS[part].items()):
            home = Path(temporary, "whole", split, name)
            home.mkdir(parents=True)
            for individual in range(FIRST[split], FIRST[split] + count):
                draw(species, individual).save(home / f"{individual:07d}.jpg", quality=88)
        Path(temporary, "whole").rename(folder)
