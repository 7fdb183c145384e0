"""Inputs that once taught something else than the file says, or took too long."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from rows import examples, write_rows
from strop.data.dataset import open_dataset
from strop.data.examples import Conversation, Fault
from strop.data.long_samples import fit
from strop.data.sources import open_sources, read_examples
from strop.data.store import TRUNCATED, StoreSettings
from strop.data.template import Encoded
from strop.errors import DataError
from strop.recipe import DataFile, DataSection

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"
QUESTION, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CONTEXT = {**ANSWER, "train": False}

REFUSED = {
    "a mask of the row that contradicts a turn's": (
        {"messages": [QUESTION, CONTEXT, QUESTION, ANSWER], "loss_mask": [0, 1, 0, 1]},
        "contradiction: the row's mask asks for turn 2",
    ),
    "a turn of the prompt that asks to be learned": (
        {"prompt": [QUESTION, {**ANSWER, "train": True}, QUESTION], "completion": "A"},
        "contradiction: a turn of 'prompt'",
    ),
    "a mask as text": ({"messages": [QUESTION, ANSWER], "loss_mask": "[0, 0]"}, "not to be learned"),
    "a mask on a part": (
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "A", "train": False}]}]},
        "unclear mask: 'train' of a part in turn 2",
    ),
    "a key twice in turns as text": (
        {"messages": '[{"role":"user","content":"Q"},{"role":"assistant","content":"A","content":"B"}]'},
        "duplicate key: 'content', in 'messages'",
    ),
    "half a character in turns as text": (
        {"messages": '[{"role":"user","content":"Q"},{"role":"assistant","content":"\\ud800"}]'},
        "lone surrogate: 'messages'",
    ),
    "a token's weight": ({"input_ids": [1, 2, 3], "loss_mask": [0, 2, 1]}, "weight 2: 'loss_mask'"),
    "two system messages": (
        {"instruction": "Q", "output": "A", "system": "R", "history": [{"role": "system", "content": "S"}]},
        "two system messages",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_row_is_refused_by_name(tmp_path, what):
    row, reason = REFUSED[what]
    [fault] = examples(write_rows(tmp_path / "train.jsonl", [row]))
    assert isinstance(fault, Fault)
    assert fault.reason.startswith(reason)


def test_system_message_of_the_history_is_the_only_one(tmp_path):
    turns = [{"role": "system", "content": "S"}, QUESTION, ANSWER]
    path = write_rows(tmp_path / "train.jsonl", [{"instruction": "Q", "output": "A", "history": turns}])
    [row] = examples(path)
    assert isinstance(row, Conversation)
    assert [m.role for m in row.messages].count("system") == 1


def test_two_parts_of_one_file_keep_their_own_repeats(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    parts = {part: [{"instruction": f"{part} {i}", "output": "A"} for i in range(4)] for part in ("train", "test")}
    path.write_text(json.dumps(parts))
    files = (DataFile(path=str(path), split="train", repeat=3), DataFile(path=str(path), split="test"))
    dataset = open_dataset(DataSection(train_file=files), SMOLLM2, 128, 0)
    assert len(dataset.train) == 4 * 3 + 4


def test_header_of_a_joined_file_is_no_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion\nq,a\n\xef\xbb\xbfprompt,completion\nr,b\n")
    _, fault, _ = examples(path)
    assert isinstance(fault, Fault)
    assert "the header once more" in fault.reason


def test_wide_header_takes_no_quadratic_time(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(["prompt", "completion", *(f"c{i}" for i in range(30_000))]) + "\nq,a" + ",1" * 30_000)
    start = time.process_time()
    examples(path)
    assert time.process_time() - start < 5


def test_broken_record_of_many_values_takes_no_quadratic_time(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"a\n"' + ',"b"' * 100_000 + ',"c" x\n')
    start = time.process_time()
    with pytest.raises(DataError, match="in doubt"):
        examples(path)
    assert time.process_time() - start < 5


def test_two_slices_of_one_file_are_no_double_and_overlapping_ones_are(tmp_path):
    path = str(write_rows(tmp_path / "rows.jsonl", [{"instruction": f"q{i}", "output": "a"} for i in range(4)]))
    halves = [{"path": path, "split": "train[:2]"}, {"path": path, "split": "train[2:]"}]
    data = DataSection(train_file=halves)
    assert len(list(read_examples(open_sources(data, data.train_file)))) == 4
    doubled = DataSection(train_file=[{"path": path, "split": "train[:3]"}, {"path": path, "split": "train[2:]"}])
    with pytest.raises(DataError, match="listed twice"):
        open_sources(doubled, doubled.train_file)


def test_a_column_that_no_row_has_is_refused(tmp_path):
    path = str(write_rows(tmp_path / "rows.jsonl", [{"q": "a", "a": "b", "system": "Be brief."}]))
    data = DataSection(train_file=path, columns={"prompt": "q", "completion": "a", "system": "sytem"})
    with pytest.raises(DataError, match="no row has the column sytem"):
        list(read_examples(open_sources(data, data.train_file)))


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"is_masked": True}, "unclear mask: 'is_masked' in turn 2"),
        ({"loss_weight": 0.5}, "unclear mask: 'loss_weight' in turn 2"),
        ({"Train": False}, "another spelling: 'Train' in turn 2: write 'train'"),
        ({"Reasoning": "hm"}, "another spelling: 'Reasoning' in turn 2: write 'reasoning'"),
    ],
)
def test_near_names_of_what_is_known_are_refused(tmp_path, turn, reason):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | turn]
    [fault] = examples(write_rows(tmp_path / "rows.jsonl", [{"messages": turns}]))
    assert reason in str(fault)


def test_an_answer_that_is_dropped_counts_as_tokens_cut():
    short, long = (Encoded(np.arange(count, dtype=np.int32), np.ones(count, bool)) for count in (4, 9))
    fitted = fit([short, long], False, None, StoreSettings(6, long_samples="drop"), np.array([3], np.int32))
    assert not isinstance(fitted, str)
    assert [(len(sample.input_ids), flags) for sample, flags in fitted.samples] == [(4, TRUNCATED)]
    assert fitted.tokens_cut == 9
