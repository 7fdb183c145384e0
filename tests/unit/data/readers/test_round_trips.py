"""Random rows, written in every way that is read, come back as they were."""

import csv
import gzip
import io
import json
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.readers import read_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# A table has no carriage returns of its own, as every reader of one has it; and a row without any value is blank.
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["q", "a", "é", "messages"]), VALUE, min_size=1), min_size=2, max_size=5
)
TABLE = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5)
# No letter before a sign that would make UTF-8 of both by accident.
LATIN_BITS = ["a", '"', "\n", "é ", "ü,", "– ", "“so”", "l’été "]
LATIN = st.lists(st.lists(st.sampled_from(LATIN_BITS)).map("".join), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read(path: Path, content: bytes) -> list:
    path.write_bytes(content)
    return [row for _, row in read_rows(path)]


JSON_STYLES = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "lines, as they are": lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "lines with commas": lambda rows: ",\n".join(map(json.dumps, rows)),
    "array": json.dumps,
    "array over lines": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "array with a comma too many": lambda rows: f"[{', '.join(map(json.dumps, rows))},\n]",
    "objects over lines": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
    "objects without space": lambda rows: "".join(map(json.dumps, rows)),
    "under a name": lambda rows: json.dumps({"version": 1, "data": rows}),
    "as a split": lambda rows: json.dumps({"test": [{}], "train": rows}, indent=1),
}


@pytest.mark.parametrize("style", JSON_STYLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
@settings(max_examples=25)
@given(rows=ROWS)
def test_json(folder, style, encoding, rows):
    content = JSON_STYLES[style](rows).encode(encoding)
    assert read(folder / "rows.jsonl", content) == rows
    assert read(folder / "rows.json.gz", gzip.compress(content)) == rows


@pytest.mark.parametrize("orient", ["columns", "index", "records", "table"])
@settings(max_examples=25)
@given(rows=TABLE)
def test_what_pandas_writes(folder, orient, rows):
    frame = pandas.DataFrame(rows, columns=["q", "a"])
    found = read(folder / "rows.json", frame.to_json(orient=orient).encode())
    assert [{"q": row["q"], "a": row["a"]} for row in found] == frame.to_dict("records")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@settings(max_examples=25)
@given(rows=TABLE)
def test_tables(folder, delimiter, quoting, encoding, rows):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([("q", "a"), *rows])
    assert read(folder / "rows.csv", text.getvalue().encode(encoding)) == [{"q": q, "a": a} for q, a in rows]


@settings(max_examples=25)
@given(texts=LATIN)
def test_cp1252(folder, texts):
    content = "\n".join(json.dumps({"q": text}, ensure_ascii=False) for text in [*texts, "“élan”"])
    assert read(folder / "latin.jsonl", content.encode("cp1252")) == [{"q": text} for text in [*texts, "“élan”"]]
