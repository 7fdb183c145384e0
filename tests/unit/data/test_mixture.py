"""Mixtures: how often an epoch sees each sample of each file, from which rows, and in which order."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.data.audit import audit
from strop.data.dataset import Dataset, open_dataset
from strop.data.mixture import counts
from strop.data.rows.columns import Shape
from strop.data.sources import Source
from strop.data.store import SampleStore
from strop.errors import DataError
from strop.microbatch.order import Order
from strop.recipe import DataFile, DataSection

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _files(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    write("alpaca.jsonl", [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(40)])
    write("chat.jsonl", [{"messages": turns(f"Say {i}!", f"{i}!")} for i in range(10)])
    write("docs.jsonl", [{"body": f"Once there was a number, and it was {i}.", "id": i} for i in range(7)])


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def opened(*files: str | dict[str, Any], **keys: Any) -> Dataset:
    section = DataSection(train_file=files, **keys)
    return open_dataset(section, SMOLLM2, 64, 42)


def samples(store: SampleStore) -> Counter[bytes]:
    """The samples of a store, each as often as it is there."""
    return Counter(store[i].input_ids.tobytes() + store[i].learned.tobytes() for i in range(len(store)))


def per_file(store: SampleStore) -> list[int]:
    return np.bincount(store.source_indices(), minlength=len(store.sources)).tolist()


DOCS = {"path": "docs.jsonl", "columns": {"text": "body"}}


def test_three_shapes_in_one_run() -> None:
    data = opened("alpaca.jsonl", "chat.jsonl", DOCS)
    assert data.format == "alpaca, messages, text"
    assert per_file(data.train) == [40, 10, 7]
    assert data.train is data.distinct
    report = audit(data.distinct, data.template, epoch=data.train).train
    assert [(source.name, source.format, source.epoch_samples) for source in report.sources] == [
        ("alpaca.jsonl", "alpaca", 40),
        ("chat.jsonl", "messages", 10),
        ("docs.jsonl", "text", 7),
    ]
    assert report.unused == {"id": 7}


def test_repeat_is_the_file_named_so_often() -> None:
    Path("again.jsonl").write_bytes(Path("chat.jsonl").read_bytes())
    twice = opened({"path": "chat.jsonl", "repeat": 2}, "alpaca.jsonl")
    written_out = opened("chat.jsonl", "again.jsonl", "alpaca.jsonl").train
    assert samples(twice.train) == samples(written_out)
    assert (twice.train.num_tokens, twice.train.num_loss_tokens) == (
        written_out.num_tokens,
        written_out.num_loss_tokens,
    )
    assert len(twice.distinct) == 50


@pytest.mark.parametrize("picks", [[0, 1, 2, 3], [2, 3], [3, 0, 0, 2], [1, 1]])
def test_a_block_is_its_samples_one_after_another(picks: list[int]) -> None:
    """As they lie on disk, from within it, and picked."""
    store = opened("docs.jsonl", columns={"text": "body"}).train.repeated(np.array(picks))
    ids, learned, begins = store.block(0, len(picks))
    each = [store[i] for i in range(len(picks))]
    assert ids.tolist() == [token for sample in each for token in sample.input_ids]
    assert learned.tolist() == [label for sample in each for label in sample.learned]
    assert begins.tolist() == np.cumsum([0, *(len(sample.input_ids) for sample in each[:-1])]).tolist()


@pytest.mark.parametrize(("repeat", "count"), [(0.5, 5), (1.5, 15), (0.01, 1), (3, 30), (1, 10), (0.25, 2)])
def test_a_part_of_a_round_takes_each_sample_at_most_once_more(repeat: float, count: int) -> None:
    data = opened({"path": "chat.jsonl", "repeat": repeat}, "alpaca.jsonl")
    seen = samples(data.train)
    of_chat = [seen[sample] for sample in samples(opened("chat.jsonl").train)]
    assert per_file(data.train) == [count, 40]
    assert max(of_chat) - min(of_chat) <= 1


def test_which_rows_half_a_file_is_does_not_depend_on_their_order() -> None:
    half = samples(opened({"path": "chat.jsonl", "repeat": 0.5}).train)
    write("chat.jsonl", [json.loads(line) for line in reversed(Path("chat.jsonl").read_text().splitlines())])
    assert samples(opened({"path": "chat.jsonl", "repeat": 0.5}).train) == half


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (1, 20, 1), (5, 1, 0.001)])
def test_weights_are_shares_and_every_sample_is_seen(weights: tuple[float, ...]) -> None:
    files = [{"path": "alpaca.jsonl"}, {"path": "chat.jsonl"}, DOCS]
    data = opened(*({**file, "weight": weight} for file, weight in zip(files, weights, strict=True)))
    seen, sizes = per_file(data.train), per_file(data.distinct)
    assert set(samples(data.train)) == set(samples(data.distinct))
    epoch = sum(seen)
    for count, weight in zip(seen, weights, strict=True):
        assert abs(count - epoch * weight / sum(weights)) <= 1
    assert any(count == size for count, size in zip(seen, sizes, strict=True)), "the epoch is as short as it can be"


def test_counts_at_the_edges() -> None:
    def source(**keys: float) -> Source:
        return Source("x", (), Shape("text"), **keys)

    assert counts([source(repeat=0.001), source(repeat=1)], np.array([3, 0])).tolist() == [1, 0]
    assert counts([source(weight=1), source(weight=9)], np.array([0, 5])).tolist() == [0, 5]
    assert counts([source(weight=1), source(weight=1)], np.array([0, 0])).tolist() == [0, 0]


def test_the_order_is_a_pure_function_of_seed_and_step() -> None:
    files = ({"path": "chat.jsonl", "repeat": 2.5}, "alpaca.jsonl")
    first, again = opened(*files).train, opened(*files).train
    assert first.fingerprint == again.fingerprint
    order = Order(len(first), 4, 1.0, None, 42)
    epoch = np.concatenate([order.samples(step) for step in range(order.num_steps)])
    assert sorted(epoch) == list(range(65))
    for i in epoch:
        assert (first[i].input_ids == again[i].input_ids).all()


@pytest.mark.parametrize("change", [{"repeat": 3}, {"repeat": 2.5}, {"max_samples": 9}, {"split": "[:9]"}])
def test_another_mixture_has_another_fingerprint(change: dict[str, Any]) -> None:
    base = opened({"path": "chat.jsonl", "repeat": 2}, "alpaca.jsonl").train.fingerprint
    assert opened({"path": "chat.jsonl", "repeat": 2} | change, "alpaca.jsonl").train.fingerprint != base


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("[:10]", range(10)),
        ("[30:]", range(30, 40)),
        ("[-5:]", range(35, 40)),
        ("[:-35]", range(5)),
        ("[10%:20%]", range(4, 8)),
        ("[95%:]", range(38, 40)),
        ("[5:5000]", range(5, 40)),
        ("[-500:2]", range(2)),
        ("[-10%:]", range(36, 40)),
    ],
)
def test_a_slice_of_a_file(split: str, rows: range) -> None:
    data = opened({"path": "alpaca.jsonl", "split": split})
    assert [data.train.origin(i).line - 1 for i in range(len(data.train))] == list(rows)


def test_slices_of_one_file_may_be_trained_and_held_out() -> None:
    data = opened(
        {"path": "alpaca.jsonl", "split": "[:90%]"}, validation_file=({"path": "alpaca.jsonl", "split": "[90%:]"},)
    )
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (36, 4)
    assert not samples(data.train) & samples(data.validation)


@pytest.mark.parametrize("split", ["[a:b]", "[1:2", "train[1]", "[:5%%]"])
def test_a_split_that_is_written_otherwise_is_refused(split: str) -> None:
    with pytest.raises(DataError, match=r"is not understood; write train, train\[:1000\]"):
        opened({"path": "alpaca.jsonl", "split": split})


def test_max_samples_counts_good_rows_of_its_own_file() -> None:
    rows = [{"instruction": f"Say {i}.", "output": "" if i % 2 else f"{i}."} for i in range(20)]
    write("half.jsonl", rows)
    data = opened({"path": "half.jsonl", "max_samples": 6}, "chat.jsonl", on_bad_row="skip")
    assert per_file(data.train) == [6, 10]


@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_row_is_trained_on_however_often_a_file_is_repeated(seed: int) -> None:
    files = ({"path": "alpaca.jsonl", "repeat": 3}, {"path": "chat.jsonl", "repeat": 0.5}, DOCS)
    section = DataSection(train_file=files, validation_split_percentage=30)
    data = open_dataset(section, SMOLLM2, 64, seed)
    assert data.validation is not None
    assert not samples(data.train) & samples(data.validation)
    assert len(data.distinct) + len(data.validation) == 57
    assert set(samples(data.validation).values()) == {1}


def test_a_subset_of_a_data_set_on_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "datasets--org--rows"
    for subset in ("en", "fr"):
        for split in ("train", "test"):
            path = repo / "snapshots" / commit / subset / f"{split}-00000-of-00001.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"prompt": f"{subset} {split}", "completion": "yes"}) + "\n")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = opened(
        {"path": "org/rows", "subset": "fr"}, validation_file=({"path": "org/rows", "subset": "fr", "split": "test"},)
    )
    assert data.validation is not None
    for store, split in ((data.train, "train"), (data.validation, "test")):
        assert [Path(store.origin(i).file).name[:5].strip("-") for i in range(len(store))] == [split]
        assert Path(store.origin(0).file).parent.name == "fr"
    with pytest.raises(DataError, match=r"no folder of the subset 'de'; it has: en, fr"):
        opened({"path": "org/rows", "subset": "de"})


def test_a_repeated_store_takes_memory_for_indices_alone() -> None:
    write("long.jsonl", [{"text": f"{i} " * 2000} for i in range(4)])
    data = open_dataset(DataSection(train_file=({"path": "long.jsonl"},)), SMOLLM2, 2048, 42)

    def peak(repeats: int) -> int:
        tracemalloc.start()
        assert len(data.distinct.repeated(np.arange(4).repeat(repeats))) == 4 * repeats
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(5000), peak(15_000)
    assert many - few < 500 * 40_000, "a sample more has 10,000 bytes of its own"


def test_entries_are_read_by_their_own_keys() -> None:
    files = (DataFile(path="docs.jsonl", columns={"text": "body"}), "alpaca.jsonl")
    assert opened(*files, format="alpaca").format == "text, alpaca"
    with pytest.raises(
        DataError, match=r"docs.jsonl:1: data.columns.text=boddy, but the keys are 'body', 'id'; did you mean body"
    ):
        opened({"path": "docs.jsonl", "columns": {"text": "boddy"}})
