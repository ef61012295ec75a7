"""CSV files that are none, and rows that do not go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.harness import Case, Place, check, params, train


def rows_of(photos: Path, split: bool = True) -> list[str]:
    paths = sorted(photos.rglob("*.jpg"))
    splits = [f",{path.parts[-3]}" if split else "" for path in paths]
    return [f"{path},{path.parent.name}{one}" for path, one in zip(paths, splits, strict=True)]


def csv_case(name: str, content: Callable[[list[str]], bytes | str], *says: str) -> Case:
    """`content` makes the file of good rows."""

    def make(place: Place) -> list[str]:
        made = content(rows_of(place.photos))
        (place.folder / "set.csv").write_bytes(made if isinstance(made, bytes) else made.encode())
        return train("--data", "set.csv")

    return Case(f"CSV {name}", make, says or ("set.csv",))


def text(rows: list[str], header: str = "path,label,split") -> str:
    return "\n".join([header, *rows]) + "\n"


CASES = [
    csv_case("in UTF-16", lambda rows: text(rows).encode("utf-16"), "set.csv", "UTF-8"),
    csv_case("in Latin-1", lambda rows: (text(rows) + "é.jpg,é,train\n").encode("latin-1"), "set.csv", "UTF-8"),
    csv_case("of random bytes", lambda rows: np.random.default_rng(0).bytes(5000), "set.csv"),
    csv_case("of zeros", lambda rows: bytes(5000), "set.csv"),
    csv_case("of an image", lambda rows: Path(rows[0].split(",")[0]).read_bytes(), "set.csv"),
    csv_case("that is empty", lambda rows: b""),
    csv_case("of a header", lambda rows: text([])),
    csv_case("of blank lines", lambda rows: "\n" * 1000),
    csv_case("without a header", lambda rows: "\n".join(rows), "path and label"),
    csv_case("with other columns", lambda rows: text(rows, "file,class,split"), "path and label"),
    csv_case("with a column twice", lambda rows: text([f"{row},x" for row in rows], "path,label,split,label"), "label"),
    csv_case("with semicolons", lambda rows: text(rows).replace(",", ";"), "path and label"),
    csv_case("with a row too short", lambda rows: text([*rows, rows[0].split(",")[0]]), "row"),
    csv_case("with a row too long", lambda rows: text([*rows, rows[0] + ",more"]), "line"),
    csv_case("with an unquoted comma", lambda rows: text([*rows, rows[0].replace(",", ",a,", 1)]), "line"),
    csv_case("with a split in some rows", lambda rows: text([*rows, rows[0].rpartition(",")[0] + ","]), "split"),
    csv_case("with rows that lack the split", lambda rows: text([*rows, rows[0].rpartition(",")[0]]), "line"),
    csv_case("with an empty path", lambda rows: text([*rows, ",red,train"]), "no path"),
    csv_case("with an empty label", lambda rows: text([*rows, rows[0].split(",")[0] + ",,train"]), "no label"),
    csv_case(
        "with another split",
        lambda rows: text([*rows, rows[0].replace(",val", ",dev").replace(",train", ",dev")]),
        "dev",
    ),
    csv_case("with one class", lambda rows: text([row for row in rows if ",red" in row]), "two classes"),
    csv_case("with a label of val alone", lambda rows: text([*rows, rows[0].split(",")[0] + ",new,val"]), "new"),
    csv_case("with a missing file", lambda rows: text([*rows, "gone.jpg,red,train"]), "gone.jpg"),
    csv_case("with a folder", lambda rows: text([*rows, "/,red,train"]), "set.csv"),
    csv_case("with a zero byte in a path", lambda rows: text([*rows, "a\0b.jpg,red,train"]), "set.csv"),
    csv_case("with a path of 300 letters", lambda rows: text([*rows, "z" * 300 + ",red,train"]), "zzz"),
    csv_case("with a path of 10,000 letters", lambda rows: text([*rows, "z/" * 5000 + ",red,train"]), "z/z/"),
    csv_case("with ~", lambda rows: text([*rows, "~nobody/x.jpg,red,train"]), "~nobody"),
    csv_case("with a cell of 200 KB", lambda rows: text([*rows, "q" * 200_000 + ",red,train"]), "set.csv"),
    csv_case("with an open quote", lambda rows: text([*rows, '"' + "\n".join(rows) * 50]), "set.csv"),
    csv_case("of one line of 5 MB", lambda rows: "path,label," + "c," * 2_500_000 + "\n", "set.csv"),
    csv_case("with carriage returns in a path", lambda rows: text([*rows, '"a\r\nb.jpg",red,train']), "set.csv"),
    csv_case(
        "with an escape in a label", lambda rows: text([*rows, rows[0].split(",")[0] + ",\x1b[31m,val"]), "set.csv"
    ),
]


def _unreadable(place: Place) -> list[str]:
    path = place.folder / "set.csv"
    path.write_text(text(rows_of(place.photos)))
    path.chmod(0)
    return train("--data", "set.csv")


CASES.append(Case("CSV that may not be read", _unreadable, ("set.csv", "ermission")))


@pytest.mark.parametrize("case", params(CASES, 15))
def test_a_csv_file_that_is_none_is_refused(case, place):
    check(case, place)
