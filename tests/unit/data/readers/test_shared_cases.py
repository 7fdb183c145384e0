"""Files as people have them, each with its rows and what is told about it; how they were made is in their names."""

from pathlib import Path

import pytest

from strop.data.readers import read_rows
from strop.errors import DataError

CASES = Path(__file__).parents[3] / "fixtures" / "cases"
QUESTIONS = ["Where is the mill?", "How deep is the well?", "Who keeps the bees?", "When does the ferry leave?"]
ANSWERS = [
    "The mill is by the weir.",
    "The well is nine metres deep.",
    "Ada keeps the bees.",
    "The ferry leaves at six.",
]
ON_A_LINE = "several rows on a line (counted instead of lines)"
COLUMNS = "columns instead of rows (numbered, as they have no line)"
SEPARATED = "columns separated by semicolons"


def rows(question: str = "instruction", answer: str = "output", ending: str = "") -> list[dict]:
    return [{question: q, answer: a + ending} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]


# file -> (the line of each row, the rows, what is told)
READ = {
    "csv/capital_keys.csv": ([2, 3, 4, 5], rows("Instruction", "Output"), []),
    "csv/cp1252_comma.csv": ([2, 3, 4, 5], rows(ending=" – café"), ["read as cp1252"]),
    "csv/cp1252_semicolon.csv": ([2, 3, 4, 5], rows(ending=" – café"), ["read as cp1252", SEPARATED]),
    "csv/question_answer.csv": ([2, 3, 4, 5], rows("Question", "Answer"), []),
    "csv/rows.tsv": ([2, 3, 4, 5], rows(), []),
    "csv/semicolon_utf8.csv": ([2, 3, 4, 5], rows(), [SEPARATED]),
    "csv/spaced_header.csv": ([2, 3, 4, 5], rows(), ["spaces after the commas left out"]),
    "csv/trailing_commas.csv": (
        [2, 3, 4, 5],
        rows(),
        ["2 columns without a name left out", "2 rows without any value left out"],
    ),
    "files/array.jsonl": ([1, 2, 3, 4], rows(), ["a JSON array", ON_A_LINE]),
    "files/array_named.json": ([1, 2, 3, 4], rows(), [ON_A_LINE]),
    "files/array_pretty.jsonl": ([2, 6, 10, 14], rows(), ["a JSON array"]),
    "files/column_oriented.json": ([1, 2, 3, 4], rows(), [COLUMNS]),
    "files/lines_with_commas.jsonl": ([1, 2, 3, 4], rows(), ["commas between the rows"]),
    "files/nan.jsonl": (
        [1, 2, 3, 4],
        [{"instruction": row["instruction"], "input": None, "output": row["output"]} for row in rows()],
        ["NaN read as null"],
    ),
    "files/numbers.jsonl": ([1, 2, 3, 4], [{"instruction": f"{i}+{i}?", "output": 2 * i} for i in range(4)], []),
    "files/pretty_concat.json": (
        [1, 5, 9, 13],
        rows(),
        ["objects one after the other, not one in each line"],
    ),
    "files/rows.jsonl.gz": ([1, 2, 3, 4], rows(), ["gzip"]),
    "files/rows.ndjson": ([1, 2, 3, 4], rows(), []),
    "files/trailing_comma.json": ([1, 2, 3, 4], rows(), []),
    "files/wrapped_data.json": ([3, 7, 11, 15], rows(), ["rows of 'data'"]),
    "files/wrapped_train.json": ([1, 2, 3, 4], rows(), ["rows of 'train'; not read: 'test' (1 row)", ON_A_LINE]),
}


@pytest.mark.parametrize("name", READ)
def test_read_whole(name):
    told = []
    found = list(read_rows(CASES / name, note=told.append))
    lines, expected, notes = READ[name]
    assert [row for _, row in found] == expected
    assert [origin.line for origin, _ in found] == lines
    assert told == notes


def test_every_file_has_a_verdict():
    elsewhere = {"csv/messages_in_cell.csv", "csv/stray_quote.csv"}
    files = {f"{folder}/{path.name}" for folder in ("csv", "files") for path in (CASES / folder).iterdir()}
    assert files == READ.keys() | elsewhere


def test_messages_in_a_cell_stay_text():
    found = list(read_rows(CASES / "csv" / "messages_in_cell.csv"))
    assert len(found) == 4
    assert found[0][1]["messages"].startswith('[{"role": "user", "content": "Where is the mill?"}')


def test_a_stray_quote_refuses_the_file():
    with pytest.raises(DataError, match=r"csv:3: the quote that opens here .* lines 3 to 8 \(6 lines\) are in doubt"):
        list(read_rows(CASES / "csv" / "stray_quote.csv"))


def test_the_other_part():
    told = []
    ((origin, row),) = read_rows(CASES / "files" / "wrapped_train.json", "test", told.append)
    assert (origin.line, row) == (1, rows()[0])
    assert told == ["rows of 'test'; not read: 'train' (4 rows)"]
