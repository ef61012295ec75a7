"""The table and the picture of `benchmarks.accuracy`, from the records of its runs."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from finetune.reporting.palette import PALETTE
from finetune.runtime import files

RECORDS = "accuracy.json"
FAMILIES = ("ours", "sklearn", "fastai", "timm", "tutorial")  # one colour each


def cells(records: list[dict], order: dict[str, list[str]]) -> list[dict]:
    """Mean and standard deviation over the seeds of each set, backbone, size and method, sets first.

    `order` has the names of sets and methods in the order of the table; others follow.
    """

    def place(key: tuple) -> tuple:
        ranks = [order[kind].index(name) if name in order[kind] else len(order[kind])
                 for kind, name in (("sets", key[0]), ("methods", key[3]))]  # fmt: skip
        return ranks[0], key[0], key[1], -key[2], ranks[1], key[3]

    groups: dict[tuple, list[dict]] = {}
    for record in records:
        key = (record["set"], record["model"], record["size"], record["method"])
        groups.setdefault(key, []).append(record)
    found = []
    for key in sorted(groups, key=place):
        runs = sorted(groups[key], key=lambda record: record["seed"])
        row = dict(zip(("set", "model", "size", "method"), key, strict=True)) | {"seeds": len(runs)}
        for name in ("test_accuracy", "val_accuracy", "seconds"):
            values = [run[name] for run in runs]
            row |= {name: statistics.mean(values), f"{name}_sd": statistics.stdev(values) if len(runs) > 1 else 0.0}
        found.append(row)
    return found


def unique(values: Iterable) -> list:
    """The values without repetitions, in order."""
    return list(dict.fromkeys(values))


def table(rows: list[dict]) -> str:
    """Markdown: a line per set and method, a column per backbone and size; the best mean of each set is bold."""
    backbones = unique((row["model"], row["size"]) for row in rows)
    by_key = {(row["set"], row["model"], row["size"], row["method"]): row for row in rows}
    most = max((row["seeds"] for row in rows), default=0)
    lines = [
        "Test accuracy, mean ± standard deviation, and mean processor seconds of the whole process. Seeds:",
        f"{most}, or the number in brackets. The best of each set and backbone is bold.",
        "",
        f"| set | method | {' | '.join(f'{model}, {size} px' for model, size in backbones)} |",
        "| --- " * (2 + len(backbones)) + "|",
    ]
    for name, method in unique((row["set"], row["method"]) for row in rows):
        words = []
        for backbone in backbones:
            row = by_key.get((name, *backbone, method))
            rivals = [other["test_accuracy"] for other in rows
                      if (other["set"], other["model"], other["size"]) == (name, *backbone)]  # fmt: skip
            words.append(cell(row, most, row["test_accuracy"] == max(rivals)) if row else "–")
        lines.append(f"| {name} | {method} | {' | '.join(words)} |")
    return "\n".join([*lines, "", *summary(rows)]) + "\n"


def cell(row: dict, most: int, best: bool) -> str:
    """One cell of the table."""
    spread = f" ± {row['test_accuracy_sd']:.3f}" if row["seeds"] > 1 else ""
    bold = "**" if best else ""
    few = f" ({row['seeds']})" if row["seeds"] < most else ""
    return f"{bold}{row['test_accuracy']:.3f}{spread}{bold}{few}, {row['seconds']:.0f} s"


def summary(rows: list[dict]) -> list[str]:
    """Markdown: each method's mean over the sets and backbones that all methods have."""
    by_method: dict[str, dict[tuple, dict]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["set"], row["model"], row["size"]] = row
    common = set.intersection(*map(set, by_method.values())) if by_method else set()
    if len(common) < 2:
        return []
    lines = [f"Means over the {len(common)} pairs of a set and a backbone that all methods have:", ""]
    lines += ["| method | test accuracy | processor seconds |", "| --- | --- | --- |"]
    for method, found in by_method.items():
        means = [statistics.mean(found[key][name] for key in common) for name in ("test_accuracy", "seconds")]
        lines.append(f"| {method} | {means[0]:.3f} | {means[1]:.0f} |")
    return lines


def picture(rows: list[dict], path: Path) -> None:
    """Accuracy against processor seconds: a row of panels for each set, a panel for each backbone and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    panels: dict[str, dict[tuple, list[dict]]] = {}
    for row in rows:
        panels.setdefault(row["set"], {}).setdefault((row["model"], row["size"]), []).append(row)
    columns = max(len(found) for found in panels.values())
    figure, axes = plt.subplots(
        len(panels), columns, figsize=(5.6 * columns, 4.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for (name, found), line in zip(panels.items(), axes, strict=True):
        for axis in line[len(found) :]:
            axis.set_axis_off()
        for ((model, size), points), axis in zip(found.items(), line, strict=False):
            axis.set_title(f"{name}: {model}, {size} px", fontsize=10)
            axis.set(xscale="log", xlabel="processor seconds, whole process", ylabel="test accuracy")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
            times, scores = ([row[name] for row in points] for name in ("seconds", "test_accuracy"))
            axis.set_xlim(min(times) / 1.5, max(times) * 8)  # labels stand on the right of their points
            spare = 0.15 * (max(scores) - min(scores)) + 0.005
            axis.set_ylim(min(scores) - spare, max(scores) + spare)
            axis.grid(alpha=0.25)
            for row in points:
                axis.errorbar(
                    row["seconds"],
                    row["test_accuracy"],
                    xerr=row["seconds_sd"],
                    yerr=row["test_accuracy_sd"],
                    fmt="o",
                    capsize=2,
                    color=colour(row["method"]),
                )
    figure.canvas.draw()  # the panels' places, which labels are moved by
    for found, line in zip(panels.values(), axes, strict=True):
        for points, axis in zip(found.values(), line, strict=False):
            label(axis, points)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def label(axis, points: list[dict]) -> None:
    """Write each point's method beside it, moved up or down to where it covers no point and no other label."""
    from matplotlib.transforms import Bbox

    places = axis.transData.transform([(row["seconds"], row["test_accuracy"]) for row in points])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in places]  # pixels
    for row in sorted(points, key=lambda row: -row["test_accuracy"]):
        text = axis.annotate(
            row["method"],
            (row["seconds"], row["test_accuracy"]),
            (7, -3),
            textcoords="offset points",
            fontsize=8,
            color=colour(row["method"]),
        )
        for shift in sorted(range(-60, 61, 4), key=abs):
            text.set_position((7, shift - 3))
            if not any(text.get_window_extent().overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())


def colour(method: str) -> str:
    """A method's colour, which it shares with its family."""
    return PALETTE[FAMILIES.index(method.partition(":")[0])]


def write(folder: Path, records: list[dict], order: dict[str, list[str]]) -> list[dict]:
    """Write accuracy.md and accuracy.json, which has every run; the cells of the table."""
    rows = cells(records, order)
    (folder / "accuracy.md").write_text(table(rows))
    files.write_text(folder / RECORDS, json.dumps({"cells": rows, "runs": records}, indent=2) + "\n")
    return rows
