from pathlib import Path

import numpy as np
import pytest

from rows import open_store, sources, write_rows
from strop.data import store as store_module
from strop.data.dataset import open_or_build
from strop.data.examples import Alpaca
from strop.data.store import BadRowsError, Split, StoreSettings, read_manifest
from strop.data.template import load_template
from strop.errors import DataError, StorageError

FIXTURES = Path(__file__).parents[2] / "fixtures"
SETTINGS = StoreSettings(max_seq_length=128)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_template(FIXTURES / "smollm2-tokenizer", "chat", ["alpaca"])


def row(question: str, answer: str) -> dict:
    return {"instruction": question, "input": "", "output": answer}


def write(folder: Path, rows: list, name: str = "train.jsonl") -> Path:
    return write_rows(folder / name, rows)


def contents(store) -> list:
    return [(s.input_ids.tolist(), s.learned.tolist()) for s in (store[i] for i in range(len(store)))]


def test_samples_are_what_the_template_says(tmp_path, template):
    path = write(tmp_path, ["", *(row(f"What is {i}+{i}?", str(2 * i)) for i in range(3000))])
    store = open_store(path, template)
    assert len(store) == store.rows_read == 3000
    for i in (0, 1023, 1024, 2999):
        [[expected]] = template.encode([Alpaca(f"What is {i}+{i}?", "", str(2 * i))])
        assert np.array_equal(store[i].input_ids, expected.input_ids)
        assert np.array_equal(store[i].learned, expected.learned)
        assert str(store.origin(i)) == f"{path}:{i + 2}"
        assert store.lengths[i] == len(expected.input_ids)
    assert store.num_tokens == sum(len(ids) for ids, _ in contents(store))
    assert store.num_loss_tokens == sum(sum(learned) for _, learned in contents(store))
    assert (store[0].input_ids.dtype, store[0].learned.dtype, store.lengths.dtype) == (
        np.int32,
        np.bool_,
        np.int32,
    )
    with pytest.raises(IndexError):
        store[3000]


def test_second_time_comes_from_the_cache(tmp_path, template, monkeypatch):
    path = write(tmp_path, [row("a", "b")])
    first = open_store(path, template)
    monkeypatch.setattr(template, "encode", None)
    again = open_store(path, template)
    assert again.fingerprint == first.fingerprint
    assert contents(again) == contents(first)


def test_same_content_elsewhere_is_the_same_key_with_its_own_origin(tmp_path, template, cache):
    open_store(write(tmp_path, [row("a", "b")]), template)
    other = open_store(write(tmp_path, [row("a", "b")], "copy.jsonl"), template)
    assert len(list(cache.iterdir())) == 1
    assert other.origin(0).file.endswith("copy.jsonl")


def test_key_follows_everything_that_decides_the_samples(tmp_path, template, cache):
    path = write(tmp_path, [row(f"q{i}", "a") for i in range(50)])
    for settings in (
        SETTINGS,
        StoreSettings(127),
        StoreSettings(128, "skip"),
        StoreSettings(128, max_samples=2),
        StoreSettings(128, split=Split("train", 10, 1)),
        StoreSettings(128, split=Split("train", 10, 2)),
        StoreSettings(128, split=Split("validation", 10, 2)),
    ):
        open_or_build(sources(path), template, settings)
    open_or_build(sources(path), load_template(FIXTURES / "smollm2-tokenizer", "alpaca", ["alpaca"]), SETTINGS)
    path.write_text(path.read_text() + "\n")
    open_store(path, template)
    assert len(list(cache.iterdir())) == 9


DAMAGE = {
    "bit flip": lambda folder, name: flip(folder / name),
    "cut short": lambda folder, name: (folder / name).write_bytes((folder / name).read_bytes()[:-1]),
    "missing": lambda folder, name: (folder / name).unlink(),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [*store_module.FILES, "manifest.json"])
def test_damaged_cache_is_built_again(tmp_path, template, cache, kind, name):
    path = write(tmp_path, [row(f"q{i}", "a") for i in range(5)])
    expected = contents(open_store(path, template))
    [folder] = cache.iterdir()
    DAMAGE[kind](folder, name)
    assert read_manifest(folder) is None
    assert contents(open_store(path, template)) == expected
    assert read_manifest(folder) is not None


def test_build_that_fails_leaves_nothing(tmp_path, template, cache, monkeypatch):
    path = write(tmp_path, [row("a", "b")])
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=r"cannot be written: .*No space left.*STROP_CACHE"):
        open_store(path, template)
    assert list(cache.iterdir()) == []


def test_ids_that_look_like_a_byte_order_mark(tmp_path, template, monkeypatch):
    """The data files' hash ignores a BOM; the store's must not, or such a store would never verify."""
    from strop.data.template import Encoded

    encoded = Encoded(np.frombuffer(b"\xef\xbb\xbf\x00" * 2, np.int32), np.array([False, True]))
    monkeypatch.setattr(template, "encode", lambda examples: [[encoded]] * len(examples))
    assert len(open_store(write(tmp_path, [row("a", "b")]), template)) == 1


def test_every_faulty_row_is_named(tmp_path, template):
    rows = [row("a", "b") if i % 2 else '{"instruction":"a"}' for i in range(100)]
    path = write(tmp_path, [*rows, row("word " * 200, "b"), row("a", "b")])
    with pytest.raises(BadRowsError) as caught:
        open_store(path, template)
    assert [fault.origin.line for fault in caught.value.faults] == [*range(1, 101, 2), 101]
    message = str(caught.value)
    assert message.startswith("51 of 102 rows cannot be used:")
    assert f"{path}:1: missing field: 'output'" in message
    listing = Path(message.split("the full list is in ")[1].split("\n")[0])
    assert len(listing.read_text().splitlines()) == 51
    assert "no answer token is left: the prompt alone has 231 tokens and max_seq_length is 128" in listing.read_text()


def test_skip_counts_by_kind_and_names_every_row(tmp_path, template, cache):
    path = write(tmp_path, ["nonsense", row("a", ""), row("a", "b"), "{", row("a", "c")])
    store = open_or_build(sources(path), template, StoreSettings(128, "skip"))
    assert (len(store), store.rows_read) == (2, 5)
    assert store.skipped == {"bad JSON": 2, "empty answer": 1}
    assert [store.origin(i).line for i in range(2)] == [3, 5]
    [folder] = cache.iterdir()
    assert [line.split(": ")[0] for line in (folder / "faults.txt").read_text().splitlines()] == [
        f"{path}:{line}" for line in (1, 2, 4)
    ]


def test_all_rows_skipped_is_an_error(tmp_path, template):
    path = write(tmp_path, [row("word " * 200, "b")] * 3)
    with pytest.raises(DataError, match=r"no row of .* can be used: no answer token is left \(3\)"):
        open_or_build(sources(path), template, StoreSettings(128, "skip"))


def test_truncation_keeps_rows_with_something_to_learn(tmp_path, template):
    path = write(tmp_path, [row("a", "word " * 200), row("a", "word " * 100), row("a", "b")])
    whole = open_or_build(sources(path), template, StoreSettings(1024))
    store = open_or_build(sources(path), template, StoreSettings(64))
    assert store.lengths.tolist() == [64, 64, len(store[2].input_ids)]
    assert store.rows["flags"].tolist() == [*[store_module.TRUNCATED | store_module.STOP_CUT] * 2, 0]
    assert (whole.tokens_cut, store.tokens_cut) == (0, whole.num_tokens - store.num_tokens)


def test_how_many_turns_a_sample_holds(tmp_path):
    """0 for all of a row. Answers that begin with a newline make samples of their own under SmolLM2's template."""
    template = load_template(FIXTURES / "smollm2-tokenizer", "chat", ["messages"])
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b")) * 2]
    apart = [turns[0], {**turns[1], "content": "\n\nb"}, *turns[2:]]
    store = open_store(write(tmp_path, [{"messages": turns}, {"messages": apart}]), template)
    assert [store.place(i)[1] for i in range(len(store))] == [0, 2, 0]


def test_a_row_that_cannot_be_read_is_counted_with_the_training_rows_alone(tmp_path, template):
    path = write(tmp_path, ["{", *(row(f"q{i}", "a") for i in range(50))])
    counts = {}
    for part in ("train", "validation"):
        store = open_or_build(sources(path), template, StoreSettings(128, "skip", split=Split(part, 30, 1)))
        counts[part] = store.rows_read, store.skipped
    assert [skipped for _, skipped in counts.values()] == [{"bad JSON": 1}, {}]
    assert sum(read for read, _ in counts.values()) == 51


def test_max_samples_counts_good_rows(tmp_path, template):
    path = write(tmp_path, ["{", row("a", "b"), row("a", ""), row("a", "c"), row("a", "d")])
    store = open_or_build(sources(path), template, StoreSettings(128, "skip", max_samples=2))
    assert [store.origin(i).line for i in range(len(store))] == [2, 4]


def test_split_is_a_partition_that_ignores_order(tmp_path, template):
    rows = [row(f"q{i}", "a") for i in range(1000)] + [row("q7", "a")] * 3

    def questions(rows: list, part: str, seed: int = 1) -> set:
        path = write(tmp_path, rows)
        store = open_or_build(sources(path), template, StoreSettings(128, split=Split(part, 10, seed)))
        return {rows[store.origin(i).line - 1]["instruction"] for i in range(len(store))}

    train, validation = questions(rows, "train"), questions(rows, "validation")
    assert len(train) + len(validation) == 1000
    assert not train & validation
    assert 60 < len(validation) < 140
    assert questions(rows[::-1], "validation") == validation
    assert questions(rows, "validation", seed=2) != validation


def test_split_that_takes_nothing(tmp_path, template):
    with pytest.raises(DataError, match="none were assigned to validation"):
        open_or_build(
            sources(write(tmp_path, [row("a", "b")])),
            template,
            StoreSettings(128, split=Split("validation", 1e-9, 1)),
        )


def test_row_that_only_the_template_refuses(tmp_path, monkeypatch):
    template = load_template(FIXTURES / "smollm2-tokenizer", "chat", ["alpaca"])
    source = "{% if 'BAD' in messages[0].content %}{{ raise_exception('no BAD here') }}{% endif %}"
    monkeypatch.setattr(template.chat, "source", source + template.chat.source)
    path = write(tmp_path, [row("a", "b"), row("BAD", "b"), row("c", "d")])
    with pytest.raises(BadRowsError) as caught:
        open_store(path, template)
    assert [str(f) for f in caught.value.faults] == [f"{path}:2: the chat template rejects this row: no BAD here"]


def test_several_files_in_order(tmp_path, template):
    write(tmp_path, [row("b", "2")], "b.jsonl")
    write(tmp_path, [row("a", "1")], "a.jsonl")
    store = open_store(tmp_path / "*.jsonl", template)
    assert [Path(store.origin(i).file).name for i in range(2)] == ["a.jsonl", "b.jsonl"]
