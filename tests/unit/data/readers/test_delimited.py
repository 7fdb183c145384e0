"""Tables: columns however they are separated, and quotes that must not swallow rows unseen."""

import pytest

from strop.data.examples import Fault
from strop.data.readers import delimited, read_rows
from strop.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(content: str | bytes, name: str = "rows.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        told = []
        return list(read_rows(path, note=told.append)), told

    return read


# name -> (text, the values of each row with its line, what is told)
READ = {
    "bars": ("q|a\na, b; c|d\n", [(2, ["a, b; c", "d"])], ["columns separated by bars"]),
    "tabs": ("q\ta\na, b\tc\n", [(2, ["a, b", "c"])], ["columns separated by tabs"]),
    "semicolons, commas in the text": (
        "q;a\na, b, c;d\ne, f, g;h, i\n",
        [(2, ["a, b, c", "d"]), (3, ["e, f, g", "h, i"])],
        ["columns separated by semicolons"],
    ),
    "Excel's hint": ("sep=;\nq;a\na;b\n", [(3, ["a", "b"])], ["columns separated by semicolons"]),
    "one column": ("text\nhello; you | there\nb\n", [(2, ["hello; you | there"]), (3, ["b"])], []),
    "blank lines": ("\n\nq,a\n\na,b\n\r\n\n", [(5, ["a", "b"])], []),
    "no newline at the end": ("q,a\na,b", [(2, ["a", "b"])], []),
    "old Mac": ("q,a\ra,b\rc,d", [(2, ["a", "b"]), (3, ["c", "d"])], ["lines that end in CR"]),
    "spaces after commas": ('q, a\na, "b, c"\n', [(2, ["a", "b, c"])], ["spaces after the commas left out"]),
    "spaces around names": (" q ,a \na , b\n", [(2, ["a ", " b"])], []),
    "quotes, newlines and delimiters in text": (
        'q,a\r\n"one\r\n\r\ntwo, three","say ""so"""\r\na 5" nail,"b"\r\n',
        [(2, ["one\n\ntwo, three", 'say "so"']), (5, ['a 5" nail', "b"])],
        [],
    ),
    "lists of cities": (
        'q,a\nlist,"Paris, France\nRome, Italy\nBonn, Germany\nOslo, Norway\nBern, Switzerland\nPrague, Czechia"\n',
        [(2, ["list", "Paris, France\nRome, Italy\nBonn, Germany\nOslo, Norway\nBern, Switzerland\nPrague, Czechia"])],
        [],
    ),
    "code": (
        'q;a\ncode;"int a;\nint b;\nint c;\nint d;\nint e;\nint f;\nint g;"\n',
        [(2, ["code", "int a;\nint b;\nint c;\nint d;\nint e;\nint f;\nint g;"])],
        ["columns separated by semicolons"],
    ),
    "code, from the second line on": (
        'q;a\ncode;"start\nint b;\nint c;\nint d;\nint e;\nend;"\n',
        [(2, ["code", "start\nint b;\nint c;\nint d;\nint e;\nend;"])],
        ["columns separated by semicolons"],
    ),
    "commas in the header": (
        "q;a, short, plain\na;b\nc;d\n",
        [(2, ["a", "b"]), (3, ["c", "d"])],
        ["columns separated by semicolons"],
    ),
    "a document in the only column": ('text\n"a\nb\nc\nd\ne\nf\ng"\n', [(2, ["a\nb\nc\nd\ne\nf\ng"])], []),
    "pandas' index": (",q,a\n0,a,b\n1,c,d\n", [(2, ["a", "b"]), (3, ["c", "d"])], ["1 column without a name left out"]),
    "empty columns that rows lack": (
        "q,a,,\na,b\nc,d,,\n",
        [(2, ["a", "b"]), (3, ["c", "d"])],
        ["2 columns without a name left out"],
    ),
    "more commas than the header has": ("q,a\na,b,,\n", [(2, ["a", "b"])], []),
    "rows of commas": ("q,a\n,\na,b\n,\n", [(3, ["a", "b"])], ["2 rows without any value left out"]),
    "header only": ("q,a\n", [], []),
    "nothing": ("", [], []),
}


@pytest.mark.parametrize("name", READ)
def test_read_whole(read, name):
    content, rows, notes = READ[name]
    found, told = read(content)
    assert [(origin.line, list(row.values())) for origin, row in found] == rows
    assert told == notes


def test_a_tsv_is_expected_to_have_tabs(read):
    assert read("q\ta\na\tb\n", "rows.tsv")[1] == []
    assert read("q,a\na,b\n", "rows.tsv")[1] == ["columns separated by commas"]


FAULTS = {
    "value in a column without a name": ("q,a,,\nc,d,,x\na,b,,\n", "bad CSV: a value in column 4, which has no name"),
    "text in a first column without a name": (
        ",q,a\nx,c,d\n1,a,b\n",
        "bad CSV: a value in column 1, which has no name",
    ),
    "too many values": ("q,a\nc,d,x\na,b\n", "bad CSV: 3 values, but the header has 2 columns"),
    "too few values": ("q,a\nc\na,b\n", "bad CSV: 1 value, but the header has 2 columns"),
    "text behind a quote": ('q,a\n"c"x,d\na,b\n', "bad CSV: ',' expected after '\"'"),
    "quotes escaped as in MySQL": ('q,a\n"say \\"so\\"",d\na,b\n', "bad CSV: ',' expected after '\"'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_line_is_one_fault(read, name):
    content, reason = FAULTS[name]
    (fault, row), _ = read(content)
    assert isinstance(fault, Fault)
    assert (fault.origin.line, fault.reason) == (2, reason)
    assert (row[0].line, [*row[1].values()]) == (3, ["a", "b"])


def thousand_rows() -> list[str]:
    return ["q,a", *(f"question {number},answer {number}" for number in range(1000))]


STRAY_QUOTES = {  # what is put in place of rows -> the lines in doubt
    "never closed": ({10: '"question,answer'}, "is never closed, so lines 11 to 1001 (991 lines)"),
    "never closed, in the second column": (
        {10: 'question,"answer'},
        "is never closed, so lines 11 to 1001 (991 lines)",
    ),
    "never closed, in the last line": ({1000: '"question,answer'}, "is never closed, so line 1001 is"),
    "closed in the last line": ({10: '"question,answer', 1000: 'nail of 5",answer'}, "lines 11 to 1001 (991 lines)"),
    "closed by an inch": ({10: '"question,answer', 900: 'nail of 5",answer'}, "lines 11 to 901 (891 lines)"),
    "closed by an inch at the end": (
        {10: 'question,"answer', 900: 'question,a nail of 5"'},
        "lines 11 to 901 (891 lines)",
    ),
    "ended by a quoted text": ({10: '"question,answer', 900: '"question",answer'}, "lines 11 to 901 (891 lines)"),
    "ended by quotes": ({10: '"question,answer', 900: 'say "hi","you"'}, "lines 11 to 901 (891 lines)"),
    "ended by two quotes": ({10: '"question,answer', 900: 'question,"answer"'}, "lines 11 to 901 (891 lines)"),
    "too many values": ({10: '"question,answer', 12: '5",6,7,"8"'}, "lines 11 to 13 (3 lines)"),
    "too few values": ({10: "question,answer", 11: '"question,answer', 12: 'nail,5"'}, "lines 12 to 13 (2 lines)"),
}


@pytest.mark.parametrize("name", STRAY_QUOTES)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_quote_that_swallows_rows_refuses_the_file(read, name, delimiter):
    replaced, doubtful = STRAY_QUOTES[name]
    lines = [replaced.get(number, line) for number, line in enumerate(thousand_rows())]
    with pytest.raises(DataError) as caught:
        read("\n".join(lines).replace(",", delimiter))
    assert doubtful in str(caught.value)
    first = min(number for number, line in replaced.items() if '"' in line) + 1
    assert f"rows.csv:{first}: the quote that opens here" in str(caught.value)


def test_the_line_of_the_quote_within_a_row_of_several_lines(read):
    with pytest.raises(DataError, match=r"rows.csv:4: the quote that opens here is never closed, so lines 4 to 6 \(3 "):
        read('q,a\n"one\n\ntwo","three\nc,d\ne,f\n')


def test_a_text_that_is_not_closed_within_a_row_s_limit(read, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match=r"rows.csv:2: .* is never closed, so lines 2 to 1001 \(1000 lines\)"):
        read("\n".join(thousand_rows()).replace("question 0", '"question 0'))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("q, q\na,b\n", "rows.csv:1: the CSV header names 'q' more than once"),
        ("\nq,a,q\na,b,c\n", "rows.csv:2: the CSV header names 'q' more than once"),
        (b"q\xe9,a\na,b\n", "rows.csv:1: the CSV header is not UTF-8"),
        ('"q"x,a\na,b\n', "rows.csv:1: bad CSV: ',' expected after '\"', in the header"),
        ('"q,a\na,b\n', "rows.csv:1: the quote that opens here is never closed"),
    ],
)
def test_a_faulty_header_refuses_the_file(read, content, reason):
    with pytest.raises(DataError) as caught:
        read(content)
    assert reason in str(caught.value)


def test_a_part_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("q,a\na,b\n")
    with pytest.raises(DataError, match="has no 'test'"):
        list(read_rows(path, "test"))
