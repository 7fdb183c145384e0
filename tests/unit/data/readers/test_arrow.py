"""Parquet, Arrow and what `save_to_disk` writes, as plain Python."""

import json

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from strop.data.readers import read_rows, saved_dataset_files
from strop.errors import DataError

TABLE = pyarrow.table(
    {
        "q": ["a", "b", None],
        "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
        "map": pyarrow.array([[("k", 1)], [], None], type=pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "turns": [[{"role": "user", "content": "a"}], [], None],
        "score": [1.5, float("nan"), None],
    }
)
ROWS = [
    {"q": "a", "kind": "x", "map": {"k": 1}, "turns": [{"role": "user", "content": "a"}], "score": 1.5},
    {"q": "b", "kind": "y", "map": {}, "turns": [], "score": None},
    {"q": None, "kind": "x", "map": None, "turns": None, "score": None},
]


def write_stream(table, path):
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_file(table, path):
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "rows.parquet": pyarrow.parquet.write_table,
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "rows.feather": pyarrow.feather.write_feather,
}


def test_fields_that_arrow_had_to_add_are_gone(tmp_path):
    tools = [[{"name": "a", "args": {"x": "1"}}], [{"name": "b", "args": {"y": "2"}}]]
    pyarrow.parquet.write_table(pyarrow.table({"tools": tools}), tmp_path / "rows.parquet")
    assert [row["tools"] for _, row in read_rows(tmp_path / "rows.parquet")] == tools


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_plain_python(tmp_path, name):
    WRITERS[name](TABLE, str(tmp_path / name))
    told = []
    found = list(read_rows(tmp_path / name, note=told.append))
    assert [row for _, row in found] == ROWS
    assert [origin.line for origin, _ in found] == [1, 2, 3]
    assert told == ["NaN read as null"]


@pytest.mark.parametrize("name", WRITERS)
def test_more_rows_than_are_read_at_a_time(tmp_path, name):
    WRITERS[name](pyarrow.table({"n": list(range(5000))}), str(tmp_path / name))
    assert [row["n"] for _, row in read_rows(tmp_path / name)] == list(range(5000))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_is_cut_short_is_refused(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](TABLE, str(path))
    whole = path.read_bytes()
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"is damaged or not|is cut short or not|cannot read"):
            list(read_rows(path))


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"rows.feather"}))  # whose writer refuses that
def test_a_column_twice_is_refused(tmp_path, name):
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["q", "q"])
    WRITERS[name](table, str(tmp_path / name))
    with pytest.raises(DataError, match="names the column 'q' more than once"):
        list(read_rows(tmp_path / name))


def test_a_part_is_refused(tmp_path):
    write_file(TABLE, str(tmp_path / "rows.arrow"))
    with pytest.raises(DataError, match="has no 'test'"):
        list(read_rows(tmp_path / "rows.arrow", "test"))


def data_set(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"q": list(texts)})


def saved_rows(folder, part=None):
    return [row["q"] for path in saved_dataset_files(folder, part) for _, row in read_rows(path)]


def test_a_saved_data_set(tmp_path):
    data_set(*"abcdefg").save_to_disk(tmp_path, num_shards=3)
    assert saved_rows(tmp_path) == list("abcdefg")
    assert saved_rows(tmp_path, "train") == list("abcdefg")
    with pytest.raises(DataError, match="has no split 'test': it is one data set"):
        saved_dataset_files(tmp_path, "test")


def test_saved_splits(tmp_path):
    datasets.DatasetDict(test=data_set("c"), train=data_set("a", "b")).save_to_disk(tmp_path)
    assert saved_rows(tmp_path) == ["a", "b"]
    assert saved_rows(tmp_path, "test") == ["c"]
    with pytest.raises(DataError, match="has no split 'dev': it has 'test', 'train'"):
        saved_dataset_files(tmp_path, "dev")


def test_the_only_split_is_meant(tmp_path):
    datasets.DatasetDict(dev=data_set("c")).save_to_disk(tmp_path)
    assert saved_rows(tmp_path) == ["c"]


def test_several_splits_without_train(tmp_path):
    datasets.DatasetDict(dev=data_set("c"), test=data_set("d")).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="has no split 'train': it has 'dev', 'test'"):
        saved_dataset_files(tmp_path, None)


def test_another_folder_is_none(tmp_path):
    assert saved_dataset_files(tmp_path, None) is None


def test_a_saved_data_set_that_is_not_whole(tmp_path):
    data_set("a").save_to_disk(tmp_path)
    (tmp_path / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"is not whole: data-00000-of-00001\.arrow is missing"):
        saved_dataset_files(tmp_path, None)


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": [3]}'])
def test_a_damaged_state(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state.json"):
        saved_dataset_files(tmp_path, None)


def test_rows_in_an_order_kept_apart_are_refused(tmp_path):
    data_set("a").save_to_disk(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "x.arrow"}]}))
    with pytest.raises(DataError, match="keeps the order of its rows apart"):
        saved_dataset_files(tmp_path, None)
