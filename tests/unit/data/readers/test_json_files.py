"""JSON by its structure: which rows, at which lines, and what is refused."""

import json
import re

import pytest

from strop.data.examples import Fault
from strop.data.readers import json_cursor, read_rows, text
from strop.errors import DataError

ROW = '{"q": "a", "a": "b"}'
PAIRS = [{"q": "a", "a": "b"}, {"q": "c", "a": "d"}]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
COLUMNS = "columns instead of rows (numbered, as they have no line)"
ON_A_LINE = "several rows on a line (counted instead of lines)"
FIRST_LOOK = " " * 5000  # more than is read at once at a file's start, whatever the size of the chunks
OBJECTS = "objects one after the other, not one in each line"


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, name: str | None = None, part: str | None = None):
        raw = content.encode() if isinstance(content, str) else content
        path = tmp_path / (name or ("rows.json" if raw.lstrip()[:1] == b"{" else "rows.jsonl"))
        path.write_bytes(raw)
        told = []
        rows = list(read_rows(path, part, told.append))
        return rows, told

    return read


# Objects that are a row, though lists in them could be columns or rows.
SINGLE_ROWS = {
    "tokens": {"input_ids": [5, 6], "labels": [-100, 6]},
    "turns of other keys": {"conversation": [{"human": "a", "assistant": "b"}]},
    "parts of a text": {"segments": [{"text": "a", "label": True}]},
    "documents beside a question": {"question": "a", "answer": "b", "documents": [{"title": "T", "text": "D"}]},
    "examples beside a text": {"text": "a", "examples": [{"x": 1}]},
    "nothing beside turns as text": {"messages": "[]", "documents": []},
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("name", SINGLE_ROWS)
def test_an_object_that_is_a_row(read, name, suffix):
    [(_, row)], told = read(json.dumps(SINGLE_ROWS[name]), f"rows{suffix}")
    assert (row, told) == (SINGLE_ROWS[name], [])


# name -> (text, the rows with their lines, what is told)
READ = {
    "tokens as columns": ('{"input_ids": [[5, 6]]}', [(1, {"input_ids": [5, 6]})], [COLUMNS]),
    "rows under the name of turns": (
        json.dumps({"conversations": [{"messages": TURNS}]}),
        [(1, {"messages": TURNS})],
        ["rows of 'conversations'"],
    ),
    "one object": (ROW, [(1, PAIRS[0])], []),
    "one object over lines": (json.dumps(PAIRS[0], indent=1), [(1, PAIRS[0])], []),
    "one conversation": (json.dumps({"messages": TURNS}), [(1, {"messages": TURNS})], []),
    "one conversation over lines": ("\n" + json.dumps({"messages": TURNS}, indent=1), [(2, {"messages": TURNS})], []),
    "one row with a list of objects": (
        '{"q": "a", "images": [{"path": "x"}]}',
        [(1, {"q": "a", "images": [{"path": "x"}]})],
        [],
    ),
    "conversations that span lines": (
        "\n".join(json.dumps({"messages": TURNS}, indent=1) for _ in range(2)),
        [(1, {"messages": TURNS}), (13, {"messages": TURNS})],
        [OBJECTS],
    ),
    "objects over lines with commas": (
        ",\n\n".join(json.dumps(row, indent=1) for row in PAIRS),
        [(1, PAIRS[0]), (6, PAIRS[1])],
        [OBJECTS],
    ),
    "objects on one line": (
        "".join(map(json.dumps, PAIRS)),
        [(1, PAIRS[0]), (2, PAIRS[1])],
        [OBJECTS, ON_A_LINE],
    ),
    "array after blank lines": (f"\n\n[\n\n{ROW}]\n\n", [(5, PAIRS[0])], ["a JSON array"]),
    "empty array": ("[]", [], ["a JSON array"]),
    "something beside the rows": (
        json.dumps({"version": "1", "about": {"by": "Ada"}, "data": PAIRS}, indent=None),
        [(1, PAIRS[0]), (2, PAIRS[1])],
        ["rows of 'data'", "not used: 'version', 'about'", ON_A_LINE],
    ),
    "rows under a name of their own": (json.dumps({"birds": PAIRS[:1]}), [(1, PAIRS[0])], ["rows of 'birds'"]),
    "an empty list beside the rows": (
        json.dumps({"data": PAIRS[:1], "test": []}),
        [(1, PAIRS[0])],
        ["rows of 'data'; not read: 'test' (0 rows)"],
    ),
    "no rows under a name": ('{"data": []}', [], ["rows of 'data'"]),
    "rows with authors": ('{"data": [{"author": "x"}]}', [(1, {"author": "x"})], ["rows of 'data'"]),
    "lists as columns": ('{"q": ["a", "c"], "a": ["b", "d"]}', [(1, PAIRS[0]), (2, PAIRS[1])], [COLUMNS]),
    "conversations as a column": (json.dumps({"messages": [TURNS]}), [(1, {"messages": TURNS})], [COLUMNS]),
    "columns over lines, with gaps in the index": (
        json.dumps({"q": {"3": "a", "7": "c"}, "a": {"3": "b", "7": "d"}}, indent=1),
        [(1, PAIRS[0]), (2, PAIRS[1])],
        [COLUMNS],
    ),
    "rows by index": (
        json.dumps(dict(zip("01", PAIRS, strict=True)), indent=1),
        [(2, PAIRS[0]), (6, PAIRS[1])],
        ["rows by their index"],
    ),
    "NaN in an array": ('[{"q": NaN}]', [(1, {"q": None})], ["a JSON array", "NaN read as null"]),
}


@pytest.mark.parametrize("name", READ)
def test_read_by_structure(read, name):
    content, rows, notes = READ[name]
    found, told = read(content)
    assert [(origin.line, row) for origin, row in found] == rows
    assert told == notes


@pytest.mark.parametrize("name", READ)
def test_the_name_of_the_file_decides_nothing(read, name):
    content, rows, notes = READ[name]
    found, told = read(content, "rows.json")
    assert [(origin.line, row) for origin, row in found] == rows
    assert told == [note for note in notes if note != "a JSON array"]


# The first line is no row, but the file is JSON Lines: one fault, and the rows after it.
@pytest.mark.parametrize(
    "first",
    [
        "{",
        '{"q": "a", "a": "b"',
        '{"q": "a", "a": "b',
        '{"q": "a",',
        "{'q': 'a'}",
        '{"q": 1 2}',
        ROW + " x",
        '{"q": ' + "[" * 100_000,
        '{"q": Infinity}',
        "hello",
        '"text"',
    ],
)
def test_a_broken_first_line_is_one_fault(read, first):
    (fault, *rows), _ = read(f"{first}\n{ROW}\n{ROW}\n")
    assert isinstance(fault, Fault)
    assert [(origin.line, row) for origin, row in rows] == [(2, PAIRS[0]), (3, PAIRS[0])]


# name -> (text, the line that the message names, what it says)
REFUSED = {
    "array cut between rows": (
        f"[\n{ROW},\n{ROW}",
        3,
        "']' expected after this, but there is nothing; the file may be",
    ),
    "array cut after a comma": (f"[\n{ROW},\n", 3, "Expecting value; the file may be cut short"),
    "array cut in a row": (
        f'[\n{ROW},\n{{"q":\n"a',
        3,
        "Unterminated string starting at in line 4; the file may be cut",
    ),
    "array broken in a row": (f'[\n{ROW},\n{{"q"\n:: 3}},\n{ROW}]' + " " * 99, 3, "Expecting value in line 4"),
    "no comma between rows": (f"[\n{ROW}\n{ROW}]", 2, "']' expected after this, but there is '{' in line 3"),
    "text after the array": (f"[{ROW}]\n{ROW}", 2, "text after the array"),
    "only a comma": ("[,]", 1, "Expecting value"),
    "rows under a name, cut": (f'{{"data": [\n{ROW},\n{ROW}\n]', 1, "'}' expected after this, but there is nothing"),
    "rows under a name, cut in the list": (f'{{"data": [\n{ROW}', 2, "']' expected after this"),
    "all on a line, cut in a text": ('{"data": [{"q": "a', 1, "Unterminated string starting at; the file may be cut"),
    "second object cut": (
        '{\n"q": "a"\n}\n{\n"q": "a"',
        4,
        "Expecting ',' delimiter in line 5; the file may be cut",
    ),
    "first object broken": ('{\n"q" "a"\n}\n{\n"q": "a"\n}' + " " * 99, 1, "':' expected after this"),
    "a name twice": (f'{{\n"data": [{ROW}],\n"data": []}}', 3, "duplicate key: 'data'"),
    "deep nesting": (f"[\n{'[' * 100_000}", 2, "nested too deeply"),
    "infinite": ('[\n{"q": Infinity}]', 2, "not a number: Infinity"),
    "not UTF-8": (b'[\n{"q": "caf\xc3\xa9"},\n{"q": "\xff"}]', 3, "not UTF-8: byte 0xff"),
    "an index twice": ('{"q": {"0": "a", "0": "b"}}', 1, "duplicate key: '0'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_line_where_it_began(read, name):
    content, line, reason = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(content)
    assert re.search(rf"rows.jsonl?:{line}: ", str(caught.value))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"q": ["a", "b"], "a": ["c"]}', "the columns do not fit together: 'q' has 2 values, 'a' has 1"),
        ('{"q": {"0": "a"}, "a": {"1": "c"}}', "the columns do not fit together: 'q' has another index"),
        ('{"test": [{"q": "a"}], "dev": [{}, {}]}', "has no 'train': it has 'test' (1 row), 'dev' (2 rows)"),
    ],
)
def test_refused_as_a_whole(read, content, reason):
    with pytest.raises(DataError) as caught:
        read(content)
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", [ROW, f"{ROW}\n{ROW}", f"[{ROW}]", '{"q": ["a"]}', f"{ROW}{ROW}"])
def test_a_part_that_is_not_there_is_refused(read, content):
    with pytest.raises(DataError, match="has no 'test': it holds one list of rows"):
        read(content, part="test")


def test_rows_without_a_name_are_the_part_train(read):
    assert read(ROW, part="train") == read(ROW)


def test_a_part_of_another_name_is_refused(read):
    with pytest.raises(DataError, match=r"has no 'dev': it has 'train' \(2 rows\), 'test' \(1 row\)"):
        read(json.dumps({"train": PAIRS, "test": PAIRS[:1]}), part="dev")


@pytest.mark.parametrize("content", ["[{}, 3, {}]", '{"data": [{}, 3, {}]}', "[\n{},\n3,\n{}]"])
def test_an_element_that_is_no_row_is_one_fault(read, content):
    (_, fault, last), _ = read(content)
    assert fault.reason == "not an object: the number 3"
    assert last[1] == {}


@pytest.mark.parametrize("content", [r'[{"q": "\ud800"}, {"q": "b"}]', r'{"q": ["\ud800", "b"]}'])
def test_a_lone_surrogate_is_one_fault(read, content):
    (fault, last), _ = read(content)
    assert fault.reason.startswith("lone surrogate: U+D800")
    assert last[1] == {"q": "b"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("name", READ)
def test_it_does_not_matter_where_chunks_end(read, name, size, monkeypatch):
    """Every token is cut somewhere: the window is moved before it is read to its end."""
    monkeypatch.setattr("strop.data.readers.compression._CHUNK", size)
    content, rows, _ = READ[name]
    assert [(origin.line, row) for origin, row in read(FIRST_LOOK + content)[0]] == rows


def test_numbers_and_escapes_at_the_end_of_a_chunk(read, monkeypatch):
    rows = [{"n": 12345678, "x": -0.5e-12, "t": '\u20ac\U0001f999 \\ "', "b": [True, False, None]}]
    for size in range(1, 12):
        monkeypatch.setattr("strop.data.readers.compression._CHUNK", size)
        for content in (json.dumps(rows), json.dumps(rows, ensure_ascii=False)):
            assert [row for _, row in read(FIRST_LOOK + content)[0]] == rows
        assert read(f'{FIRST_LOOK}{{"version": 12345678, "data": []}}')[1][0] == "rows of 'data'"


ONE_ROW = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"birds": PAIRS[:1]}, {"text": ["a"]}]


@pytest.mark.parametrize("row", ONE_ROW)
def test_the_only_line_of_a_jsonl_file_is_a_row(read, row):
    assert [found for _, found in read(json.dumps(row), "rows.jsonl")[0]] == [row]


@pytest.mark.parametrize("content", [{"data": PAIRS}, {"q": {"0": "a", "1": "c"}, "a": {"0": "b", "1": "d"}}])
def test_but_not_if_it_holds_rows_without_doubt(read, content):
    assert len(read(json.dumps(content), "rows.jsonl")[0]) == 2


def test_a_row_of_an_array_that_is_too_long_is_refused(read, monkeypatch):
    monkeypatch.setattr(json_cursor, "MAX_ROW_BYTES", 1 << 20)
    monkeypatch.setattr(text, "MAX_ROW_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"rows.jsonl:2: row too long: over 1 MiB"):
        read(f'[{ROW},\n{{"q": "{"x" * (4 << 20)}"}}]')


def test_an_object_on_a_line_longer_than_a_row(read, monkeypatch):
    """What is too long for a row may still be rows under a name."""
    monkeypatch.setattr(text, "MAX_ROW_BYTES", 1000)
    rows = [{"q": str(number)} for number in range(500)]
    assert [row for _, row in read(json.dumps({"version": 1, "train": rows}))[0]] == rows
