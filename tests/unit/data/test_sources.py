import json

import pytest

from strop.data.examples import Alpaca, Conversation, Message, PromptCompletion, Text, split_answer
from strop.data.sources import detect_format, read_examples
from strop.errors import DataError

ALPACA = {"instruction": "Add.", "input": "2+2", "output": "4"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
SHAPES = {
    "alpaca": (ALPACA, Alpaca("Add.", "2+2", "4")),
    "messages": (
        MESSAGES,
        Conversation((Message("system", "Be brief."), Message("user", "2+2?"), Message("assistant", "4"))),
    ),
    "sharegpt": (SHAREGPT, Conversation((Message("user", "2+2?"), Message("assistant", "4")))),
    "prompt_completion": ({"prompt": "2+2=", "completion": "4"}, PromptCompletion("2+2=", "4")),
    "text": ({"text": "2+2=4"}, Text("2+2=4")),
}


def write(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_is_detected_and_read(tmp_path, shape):
    row, expected = SHAPES[shape]
    path = write(tmp_path, row)
    assert detect_format([path]) == shape
    [(origin, example)] = read_examples([path], shape)
    assert example == expected
    assert str(origin) == f"{path}:1"


def test_alpaca_data_with_a_text_column_is_alpaca(tmp_path):
    assert detect_format([write(tmp_path, ALPACA | {"text": "rendered"})]) == "alpaca"


def test_detection_can_be_overridden(tmp_path):
    path = write(tmp_path, ALPACA | {"text": "rendered"})
    assert [example for _, example in read_examples([path], "text")] == [Text("rendered")]


def test_openai_turns_under_the_sharegpt_key(tmp_path):
    path = write(tmp_path, {"conversations": MESSAGES["messages"]})
    assert [e for _, e in read_examples([path], detect_format([path]))] == [SHAPES["messages"][1]]


def test_json_array_counts_lines(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([ALPACA, ALPACA | {"output": 3}, ALPACA], indent=1), "utf-8")
    first, fault, last = read_examples([path], "alpaca")
    assert (first[0].line, fault.origin.line, last[0].line) == (2, 7, 12)


def test_json_file_with_one_object_a_line(tmp_path):
    path = write(tmp_path, ALPACA, ALPACA, name="train.json")
    assert len(list(read_examples([path], detect_format([path])))) == 2


def test_csv_and_parquet_give_the_same_examples(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text('instruction,input,output\nAdd.,2+2,4\n"Say ""hi"", twice",,"hi\nhi"\n', "utf-8")
    rows = [ALPACA, {"instruction": 'Say "hi", twice', "input": "", "output": "hi\nhi"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tables = [
        [example for _, example in read_examples([path], detect_format([path]))]
        for path in (tmp_path / "a.csv", tmp_path / "a.parquet", write(tmp_path, *rows))
    ]
    assert tables[0] == tables[1] == tables[2]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'strop\[parquet\]'"):
        detect_format([tmp_path / "a.parquet"])


def test_no_known_shape_names_the_keys_and_the_shapes(tmp_path):
    with pytest.raises(DataError, match=r"'question'.*alpaca .instruction, output"):
        detect_format([write(tmp_path, {"question": "a"})])


def test_split_answer_is_the_last_answer():
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    assert split_answer(Conversation(tuple(turns))) == (("user", "a", "assistant", "b", "user", "c"), "d")
    assert split_answer(Alpaca("i", "x", "o")) == (("user", "i", "x"), "o")
