import json

import pytest

from rows import examples, sources, write_rows
from strop.data.examples import Alpaca, Conversation, Message, PromptCompletion, Text, Tokens, split_answer
from strop.data.sources import read_examples
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
SYSTEM, QUESTION = Message("system", "Be brief.", learned=False), Message("user", "2+2?", learned=False)
SHAPES = {
    "alpaca": (ALPACA, Alpaca("Add.", "2+2", "4")),
    "messages": (
        MESSAGES,
        Conversation((SYSTEM, QUESTION, Message("assistant", "4"))),
    ),
    "sharegpt": (SHAREGPT, Conversation((QUESTION, Message("assistant", "4")))),
    "prompt_completion": ({"prompt": "2+2=", "completion": "4"}, PromptCompletion("2+2=", "4")),
    "text": ({"text": "2+2=4"}, Text("2+2=4")),
    "tokens": ({"input_ids": [3, 4], "labels": [-100, 4]}, Tokens((3, 4), (False, True))),
}


def write(folder, *rows, name="train.jsonl"):
    return write_rows(folder / name, rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_is_detected_and_read(tmp_path, shape):
    row, expected = SHAPES[shape]
    path = write(tmp_path, row)
    [source] = sources(path)
    assert source.shape.format == shape
    [found] = read_examples([source])
    assert found.example == expected
    assert str(found.origin) == f"{path}:1"
    assert found.unused == ()


def test_alpaca_data_with_a_text_column_is_alpaca(tmp_path):
    [source] = sources(write(tmp_path, ALPACA | {"text": "rendered"}))
    [found] = read_examples([source])
    assert (source.shape.format, found.example, found.unused) == ("alpaca", SHAPES["alpaca"][1], ("text",))


def test_detection_can_be_overridden(tmp_path):
    assert examples(write(tmp_path, ALPACA | {"text": "rendered"}), format="text") == [Text("rendered")]


def test_openai_turns_under_the_sharegpt_key(tmp_path):
    assert examples(write(tmp_path, {"conversations": MESSAGES["messages"]})) == [SHAPES["messages"][1]]


def test_json_array_counts_lines(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([ALPACA, ALPACA | {"output": 3}, ALPACA], indent=1), "utf-8")
    first, fault, last = read_examples(sources(path))
    assert (first.origin.line, fault.origin.line, last.origin.line) == (2, 7, 12)


def test_json_file_with_one_object_a_line(tmp_path):
    assert len(examples(write(tmp_path, ALPACA, ALPACA, name="train.json"))) == 2


def test_csv_and_parquet_give_the_same_examples(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text('instruction,input,output\nAdd.,2+2,4\n"Say ""hi"", twice",,"hi\nhi"\n', "utf-8")
    rows = [ALPACA, {"instruction": 'Say "hi", twice', "input": "", "output": "hi\nhi"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = examples(write(tmp_path, *rows))
    assert examples(tmp_path / "a.csv") == examples(tmp_path / "a.parquet") == expected
    assert len(expected) == 2


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'strop\[parquet\]'"):
        sources(tmp_path / "a.parquet")


def test_no_known_shape_names_the_keys_and_the_shapes(tmp_path):
    with pytest.raises(DataError, match=r"the keys are 'frage'.*instruction, output.*data\.columns"):
        sources(write(tmp_path, {"frage": "a"}))


def test_files_of_different_shapes_are_entries_of_one_list(tmp_path):
    paths = [write(tmp_path, row, name=f"{shape}.jsonl") for shape, (row, _) in SHAPES.items()]
    assert [source.shape.format for source in sources(*paths)] == list(SHAPES)
    assert examples(*paths) == [expected for _, expected in SHAPES.values()]


def test_split_answer_is_the_last_answer():
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    assert split_answer(Conversation(tuple(turns))) == (("user", "a", "assistant", "b", "user", "c"), "d")
    assert split_answer(Alpaca("i", "x", "o")) == (("user", "i", "x"), "o")


def test_tools_in_a_turn_are_refused_by_name(tmp_path):
    turns = [{"role": "system", "content": "Help.", "tools": "[]"}, *MESSAGES["messages"][1:]]
    [fault] = examples(write(tmp_path, {"messages": [turns[0] | {"tools": '[{"name": "f"}]'}, *turns[1:]]}))
    assert str(fault).endswith(
        "not supported: 'tools' in turn 1: declare them beside the turns, in the row's own 'tools'"
    )


def test_a_number_beside_an_instruction_is_a_class_and_beside_a_prompt_a_verdict(tmp_path):
    [row] = read_examples(sources(write(tmp_path, ALPACA | {"label": 0})))
    assert row.unused == ("label",)
    [fault] = examples(write(tmp_path, {"prompt": "2+2=", "completion": "4", "label": 0}))
    assert "undesirable answer: 'label' is 0" in str(fault)
