"""Malformed data files, made here as bytes, each with the verdict it must get."""

import json
import tracemalloc
from pathlib import Path

import pytest

from rows import examples, sources
from strop.data.examples import Alpaca, Conversation, Fault
from strop.data.readers import text
from strop.data.sources import read_examples
from strop.errors import DataError

GOOD = b'{"instruction":"What is 2+2?","input":"","output":"4"}'
CHAT = '{"messages":[%s]}'


def turn(role: str, content: str = "x") -> str:
    return json.dumps({"role": role, "content": content})


def chat(*turns: str) -> bytes:
    return (CHAT % ",".join(turns)).encode()


def sharegpt(*speakers: str) -> bytes:
    return json.dumps({"conversations": [{"from": s, "value": "x"} for s in speakers]}).encode()


def alpaca(output: bytes) -> bytes:
    return b'{"instruction":"a","output":' + output + b"}"


# name -> (row, what its Fault says). Each row is put on line 3 of a file between good rows.
FAULTY_ROWS: dict[str, tuple[bytes, str]] = {
    "cut short": (b'{"instruction":"a","output":"b"', "bad JSON: Expecting ',' delimiter at column 32"),
    "open string": (
        b'{"instruction":"a","output":"b}',
        "bad JSON: Unterminated string starting at at column 29",
    ),
    "single quotes": (b"{'instruction':'a'}", "bad JSON: Expecting property name enclosed in double quotes"),
    "trailing comma": (b'{"instruction":"a","output":"b",}', "bad JSON: "),
    "two objects": (GOOD + GOOD, f"bad JSON: Extra data at column {len(GOOD) + 1}"),
    "python literal": (alpaca(b"None"), "bad JSON: Expecting value at column 29"),
    "not JSON": (b"hello", "bad JSON: Expecting value at column 1"),
    "raw tab in string": (alpaca(b'"a\tb"'), "bad JSON: Invalid control character at at column 31"),
    "raw NUL in string": (alpaca(b'"a\x00b"'), "bad JSON: Invalid control character at at column 31"),
    "bad escape": (alpaca(rb'"\x41"'), "bad JSON: Invalid \\escape"),
    "only NULs": (b"\x00" * 8, "bad JSON: Expecting value at column 1"),
    "invalid UTF-8": (alpaca(b'"caf\xe9"'), "not UTF-8: byte 33 is 0xe9"),
    "truncated UTF-8": (alpaca(b'"\xe2\x82"'), "not UTF-8: byte 30 is 0xe2"),
    "overlong UTF-8": (alpaca(b'"\xc0\xaf"'), "not UTF-8: byte 30 is 0xc0"),
    "surrogate as UTF-8": (alpaca(b'"\xed\xa0\x80"'), "not UTF-8: byte 30 is 0xed"),
    "lone surrogate": (alpaca(rb'"\ud800"'), "lone surrogate: U+D800"),
    "lone low surrogate": (alpaca(rb'"a\uDC00b"'), "lone surrogate: U+DC00"),
    "lone surrogate in a key": (rb'{"instruction":"a","output":"b","\udfff":1}', "lone surrogate: U+DFFF"),
    "lone surrogate deep inside": (
        rb'{"instruction":"a","output":"b","x":[{"y":["\ud801"]}]}',
        "lone surrogate",
    ),
    "NaN": (alpaca(b"NaN"), "null: 'output'"),
    "Infinity": (alpaca(b"Infinity"), "not a number: Infinity"),
    "-Infinity in an extra key": (
        b'{"instruction":"a","output":"b","x":-Infinity}',
        "not a number: -Infinity",
    ),
    "1e999": (alpaca(b"1e999"), "not a number: 1e999 is out of range"),
    "5,000 digits": (alpaca(b"9" * 5000), "not a number: an integer of 5,000 digits"),
    "deep nesting": (alpaca(b"[" * 200_000 + b"]" * 200_000), "bad JSON: nested too deeply"),
    "deep nesting, unclosed": (b'{"a":' * 200_000, "bad JSON: nested too deeply"),
    "duplicate key": (b'{"instruction":"a","output":"b","output":"c"}', "duplicate key: 'output'"),
    "duplicate key deep inside": (
        b'{"instruction":"a","output":"b","x":{"y":1,"y":2}}',
        "duplicate key: 'y'",
    ),
    "a list": (b'["a","b"]', "not an object: a list"),
    "a string": (b'"a"', "not an object: a string"),
    "a number": (b"3", "not an object: the number 3"),
    "null": (b"null", "not an object: null"),
    "missing output": (b'{"instruction":"a","response":"b"}', "missing field: 'output' (the keys are"),
    "missing instruction": (b'{"input":"a","output":"b"}', "missing field: 'instruction'"),
    "empty object": (b"{}", "missing field: 'instruction' (the keys are none)"),
    "null output": (alpaca(b"null"), "null: 'output'"),
    "integer output": (alpaca(b"42"), "not text: 'output' is of type int, but must be text; put it in quotes"),
    "float output": (alpaca(b"0.10"), "not text: 'output' is of type float, but must be text"),
    "bool output": (alpaca(b"true"), "not text: 'output' is of type bool, but must be text"),
    "list output": (alpaca(b'["a"]'), "not an object: turn 1 of 'output'"),
    "number as input": (b'{"instruction":"a","input":3,"output":"b"}', "not text: 'input'"),
    "empty output": (alpaca(b'""'), "empty answer: 'output'"),
    "blank output": (alpaca(b'" \\n "'), "empty answer: 'output'"),
    "empty instruction": (b'{"instruction":"","output":"b"}', "empty instruction"),
    "another shape": (
        chat(turn("user"), turn("assistant")),
        "mixed shapes: this row has the keys of messages",
    ),
    "prompt shape": (
        b'{"prompt":"a","completion":"b"}',
        "mixed shapes: this row has the keys of prompt_completion",
    ),
}

FAULTY_CHATS: dict[str, tuple[bytes, str]] = {
    "no turns": (chat(), "no turns: 'messages' must be a list"),
    "turns not a list": (b'{"messages":"hi"}', "bad JSON: 'messages'"),
    "turns are one object": (b'{"messages":{"role":"user"}}', "no turns"),
    "null turns": (b'{"messages":null}', "null: 'messages'"),
    "turn not an object": (b'{"messages":["hi"]}', "not an object: turn 1"),
    "only user": (chat(turn("user")), "no answer: no turn is from assistant"),
    "only system": (chat(turn("system")), "no answer"),
    "unknown role": (chat(turn("narrator"), turn("assistant")), "unknown role: 'role' is 'narrator' in turn 1"),
    "only a tool's": (chat(turn("user"), turn("tool")), "no answer"),
    "empty answer": (chat(turn("user"), turn("assistant", "")), "empty answer: 'content' in turn 2"),
    "empty question": (chat(turn("user", " "), turn("assistant")), "empty question: 'content' in turn 1"),
    "null content": (b'{"messages":[{"role":"user","content":null}]}', "null: 'content' in turn 1"),
    "parts as content": (
        b'{"messages":[{"role":"user","content":[{"type":"text"}]}]}',
        "not text: a part in turn 1 is type",
    ),
    "role missing": (b'{"messages":[{"content":"a"}]}', "missing field: 'role' in turn 1"),
    "nothing but weight 0": (
        chat(turn("user"), '{"role":"assistant","content":"a","weight":0}'),
        "not to be learned: every answer is marked as context",
    ),
    "half a weight": (
        chat(turn("user"), '{"role":"assistant","content":"a","weight":0.5}'),
        "weight 0.5: 'weight' in turn 2: strop learns an answer or does not",
    ),
}

FAULTY_SHAREGPT: dict[str, tuple[bytes, str]] = {
    "unknown from": (sharegpt("human", "bing"), "unknown role: 'from' is 'bing' in turn 2"),
    "value missing": (b'{"conversations":[{"from":"human"}]}', "missing field: 'value' in turn 1"),
}


def write(folder: Path, data: bytes, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(path: Path) -> list:
    return list(read_examples(sources(path)))


@pytest.mark.parametrize("name", FAULTY_ROWS)
def test_faulty_row(tmp_path, name):
    row, reason = FAULTY_ROWS[name]
    check_one_fault(tmp_path, GOOD, row, reason)


@pytest.mark.parametrize("name", FAULTY_CHATS)
def test_faulty_chat(tmp_path, name):
    row, reason = FAULTY_CHATS[name]
    check_one_fault(tmp_path, chat(turn("user"), turn("assistant")), row, reason)


@pytest.mark.parametrize("name", FAULTY_SHAREGPT)
def test_faulty_sharegpt(tmp_path, name):
    row, reason = FAULTY_SHAREGPT[name]
    check_one_fault(tmp_path, sharegpt("human", "gpt"), row, reason)


def check_one_fault(folder: Path, good: bytes, row: bytes, reason: str) -> None:
    """The faulty row gets its line and reason, and the rows around it are read: no more, no less."""
    path = write(folder, good + b"\n\n" + row + b"\n" + good + b"\n")
    first, fault, last = read(path)
    assert isinstance(fault, Fault)
    assert str(fault).startswith(f"{path}:3: {reason}")
    assert (first.origin.line, last.origin.line) == (1, 4)


TURNS = {
    "assistant first": (["assistant", "user"], 1),
    "assistant after system": (["system", "assistant"], 2),
    "two user turns": (["user", "user", "assistant"], 3),
    "two answers": (["user", "assistant", "assistant"], 3),
    "system later": (["user", "system", "assistant"], 3),
    "developer": (["developer", "user", "assistant"], 3),
    "tool": (["user", "tool", "assistant"], 3),
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_in_any_order_are_left_to_the_template(tmp_path, name):
    """Whether it can say them is seen when it does; up to the last answer, they are read as they are."""
    roles, kept = TURNS[name]
    [found] = examples(write(tmp_path, chat(*(turn(role, f"{role} {n}") for n, role in enumerate(roles)))))
    assert isinstance(found, Conversation)
    assert [message.content for message in found.messages] == [f"{role} {n}" for n, role in enumerate(roles)][:kept]


ACCEPTED: dict[str, bytes] = {
    "plain": GOOD + b"\n" + GOOD + b"\n",
    "no newline at the end": GOOD + b"\n" + GOOD,
    "CRLF": GOOD + b"\r\n" + GOOD + b"\r\n",
    "byte order mark": b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD,
    "blank lines": b"\n \n" + GOOD + b"\n\t\n" + GOOD + b"\n\n",
    "spaces around": b"  " + GOOD + b"  \n" + GOOD,
    "extra keys": b'{"id":7,"score":0.5,"tags":[null],' + GOOD[1:] + b"\n" + GOOD,
    "no input": GOOD.replace(b'"input":"",', b"") + b"\n" + GOOD,
    "null input": GOOD.replace(b'"input":""', b'"input":null') + b"\n" + GOOD,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_with_the_same_result(tmp_path, name):
    plain = examples(write(tmp_path, ACCEPTED["plain"], "plain.jsonl"))
    assert plain == [Alpaca("What is 2+2?", "", "4")] * 2
    assert examples(write(tmp_path, ACCEPTED[name])) == plain


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\\u0000", "\\u000b"])
def test_unicode_line_separators_are_part_of_the_text(tmp_path, separator):
    row = '{"instruction":"a","output":"one' + separator + 'two"}\n'
    assert examples(write(tmp_path, row.encode() * 2)) == [Alpaca("a", "", json.loads(row)["output"])] * 2


def test_surrogate_pair_is_one_character(tmp_path):
    assert examples(write(tmp_path, alpaca(rb'"\ud83e\udd99"'))) == [Alpaca("a", "", "\U0001f999")]


REFUSED_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "has no rows"),
    "blank lines only": ("a.jsonl", b"\n  \n\r\n", "has no rows"),
    "only a byte order mark": ("a.jsonl", b"\xef\xbb\xbf", "has no rows"),
    "UTF-16, cut short": ("a.jsonl", GOOD.decode().encode("utf-16")[:-1], "begins as UTF-16, but from about line 1 on"),
    "no known key": (
        "a.jsonl",
        b'{"frage":"a","antwort":"b"}',
        "no known shape; the keys are 'frage', 'antwort'",
    ),
    "every row bad": ("a.jsonl", b"x\ny\n", "none of the first 2 rows can be read; the first"),
    "array cut short": ("a.json", b"[" + GOOD + b"," + GOOD[:-4], "a.json:1: "),
    "array without end": ("a.json", b"[" + GOOD, "the file may be cut short"),
    "array, two commas": ("a.json", b"[" + GOOD + b",,]", "Expecting value"),
    "array and more": ("a.json", b"[" + GOOD + b"] x", "text after the array"),
    "array, bad byte": ("a.json", b"[\n" + alpaca(b'"\xff"') + b"]", "a.json:2: not UTF-8"),
    "empty array": ("a.json", b"[]", "has no rows"),
    "CSV header twice": ("a.csv", b"text,text\na,b\n", "names 'text' more than once"),
    "CSV header only": ("a.csv", b"instruction,output\n", "has no rows"),
    "not Parquet": ("a.parquet", b"PAR1 not really", "damaged or not Parquet"),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_file_refused_as_a_whole(tmp_path, name):
    file, data, reason = REFUSED_FILES[name]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, data, file))
    assert reason in str(caught.value)
    assert caught.value.exit_code == 3


CSV_FAULTS: dict[str, tuple[bytes, str]] = {
    "too few values": (b"a", "bad CSV: 1 value, but the header has 2 columns"),
    "too many values": (b"a,b,c", "bad CSV: 3 values"),
    "text after quote": (b'"a"x,b', "bad CSV: ',' expected after '\"'"),
    "not UTF-8": (b"a,caf\xe9", "not UTF-8: an invalid byte"),
    "empty answer": (b"a,", "empty answer: 'output'"),
}


@pytest.mark.parametrize("name", CSV_FAULTS)
def test_faulty_csv_row(tmp_path, name):
    row, reason = CSV_FAULTS[name]
    path = write(tmp_path, b'instruction,output\n"two\nlines",b\n' + row + b"\na,b\n", "a.csv")
    first, fault, last = read(path)
    assert str(fault).startswith(f"{path}:4: {reason}")
    assert (first.origin.line, first.example.instruction, last.origin.line) == (2, "two\nlines", 5)


def test_csv_quote_that_never_closes(tmp_path):
    path = write(tmp_path, b'instruction,output\na,b\na,"b\nc,d\n', "a.csv")
    with pytest.raises(
        DataError, match=r"a.csv:3: the quote that opens here is never closed, so lines 3 to 4 \(2 lines\)"
    ):
        read(path)


def test_row_over_the_limit_is_skipped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_ROW_BYTES", 1 << 20)
    path = write(tmp_path, GOOD + b"\n" + alpaca(b'"' + b"x" * (1 << 20) + b'"') + b"\n" + GOOD)
    first, fault, last = read(path)
    assert str(fault) == f"{path}:2: row too long: over 1 MiB"
    assert (first.origin.line, last.origin.line) == (1, 3)


def test_a_line_without_end_takes_no_memory(monkeypatch):
    monkeypatch.setattr(text, "MAX_ROW_BYTES", 1 << 20)
    tracemalloc.start()
    found = list(text.numbered_lines(b"x" * (1 << 20) for _ in range(64)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(1, None)]
    assert peak < 8 << 20


def test_row_at_the_limit_is_read(tmp_path, monkeypatch):
    row = alpaca(b'"' + b"x" * 100 + b'"')
    monkeypatch.setattr(text, "MAX_ROW_BYTES", len(row))
    assert not isinstance(read(write(tmp_path, row + b"\n" + row))[0], Fault)


def test_a_glob_of_two_shapes(tmp_path):
    """As entries of their own they may stand side by side; one entry is read in one way."""
    write(tmp_path, GOOD, "a.jsonl")
    write(tmp_path, b'{"text":"a"}', "b.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl has the keys of text, but .*a.jsonl those of alpaca"):
        sources(tmp_path / "*.jsonl")
    assert [type(found).__name__ for found in examples(tmp_path / "a.jsonl", tmp_path / "b.jsonl")] == [
        "Alpaca",
        "Text",
    ]
