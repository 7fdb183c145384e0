import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest

from rows import open_store, write_rows
from strop.data.audit import Overlap, audit
from strop.data.template import load_template
from strop.data.tokenizer import load_tokenizer, texts_of
from strop.errors import DataError

FIXTURES = Path(__file__).parents[2] / "fixtures"
SMOLLM2, PHI3 = FIXTURES / "smollm2-tokenizer", FIXTURES / "phi3-tokenizer"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))


def open_rows(folder, rows, template, name="train.jsonl", **settings):
    return open_store(write_rows(folder / name, rows), template, **settings)


def row(question, answer):
    return {"instruction": question, "output": answer}


def test_report(tmp_path):
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    rows = [row(f"q {i}", "yes") for i in range(5000)] + [
        row("q 3", "yes"),
        row("s", "<|im_end|>"),
        row("t", "w " * 300),
    ]
    store = open_rows(tmp_path, [*rows, row("", "x")], template, on_bad_row="skip")
    validation = open_rows(tmp_path, [row("q 1", "yes"), row("q 1", "no"), row("new", "x")], template, "val.jsonl")
    report = audit(store, template, validation, num_preview=2)
    part = report.train
    assert (part.rows_read, part.rows_kept, part.skipped) == (5004, 5003, {"empty instruction": 1})
    assert (part.num_tokens, part.num_loss_tokens) == (store.num_tokens, store.num_loss_tokens)
    assert (part.truncated, part.stop_cut, part.stop_learned, part.double_bos) == (1, 1, 5002, 0)
    assert (part.duplicates, part.special_text) == (1, 1)
    assert [origin.line for origin in part.special_text_origins] == [5002]
    assert (part.lengths.max, part.lengths.min) == (128, int(store.lengths.min()))
    assert sum(part.lengths.counts) == 5003
    assert part.lengths.edges[-1] == 129
    assert report.overlap == Overlap(rows=1, prompts=2)
    first = report.preview[0]
    assert "".join(t for t, is_learned in zip(first.texts, first.learned, strict=True) if is_learned) == "yes<|im_end|>"
    report.refuse()


def test_lengths_are_those_of_the_samples(tmp_path):
    template = load_template(SMOLLM2, "plain", ["prompt_completion"])
    rows = [{"prompt": "a", "completion": " b" * (1 + i % 41)} for i in range(400)]
    store = open_rows(tmp_path, rows, template)
    got = audit(store, template).train.lengths
    lengths = sorted(len(store[i].input_ids) for i in range(400))
    assert (got.min, got.max) == (lengths[0], lengths[-1])
    assert got.median == statistics.median(lengths)
    assert got.p95 == pytest.approx(statistics.quantiles(lengths, n=20, method="inclusive")[-1])
    assert len(got.edges) == len(got.counts) + 1
    for low, high, count in zip(got.edges, got.edges[1:], got.counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)


def test_sources_count_tokens_of_an_epoch(tmp_path):
    template = load_template(SMOLLM2, "plain", ["prompt_completion"])
    store = open_rows(tmp_path, [{"prompt": "a", "completion": " b" * (1 + i)} for i in range(5)], template)
    epoch = store.repeated(np.array([0, 1, 2, 3, 4, 4, 4]))
    [source] = audit(store, template, epoch=epoch).train.sources
    wanted = sum(len(store[i].input_ids) for i in (0, 1, 2, 3, 4, 4, 4))
    assert (source.samples, source.epoch_samples, source.epoch_tokens) == (5, 7, wanted)


def test_preview_shows_characters_that_are_several_tokens(tmp_path):
    answer = "Straße, größer, 5 €, 日本語 🙂"
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    first = audit(open_rows(tmp_path, [row("Wie heißt sie?", answer)], template), template).preview[0]
    assert "".join(t for t, is_learned in zip(first.texts, first.learned, strict=True) if is_learned) == (
        f"{answer}<|im_end|>"
    )
    assert "Wie heißt sie?" in "".join(first.texts)
    assert len(first.texts) == len(first.input_ids)


@pytest.mark.parametrize("tokenizer", [SMOLLM2, PHI3])
def test_texts_of_tokens_are_the_text(tokenizer):
    tokenizer = load_tokenizer(tokenizer)
    text = "  Straße  und \ufffd 🙂👩‍👩‍👧.\n\tEnde"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(texts_of(tokenizer, ids)) == text
    assert all(texts_of(tokenizer, ids[: n + 1])[:-1] == texts_of(tokenizer, ids)[:n] for n in range(1, len(ids)))
    cut = tokenizer.encode("𒀀", add_special_tokens=False)[:-1]
    assert "".join(texts_of(tokenizer, cut)).strip("\ufffd ") == ""
    assert texts_of(tokenizer, cut)[-1].endswith("\ufffd")


def test_parts_of_a_document_are_not_repeated_rows(tmp_path):
    template = load_template(SMOLLM2, "plain", ["text"])
    documents = [{"text": f"{start} <|im_end|>" + " word" * 300} for start in ("One", "Two", "Two")]
    held_out = [{"text": documents[0]["text"]}]
    store = open_rows(tmp_path, documents, template, long_samples="split")
    validation = open_rows(tmp_path, held_out, template, "val.jsonl", long_samples="split")
    report = audit(store, template, validation)
    assert (report.train.rows_kept, report.train.samples > 6) == (3, True)
    assert (report.train.duplicates, report.train.special_text) == (1, 3)
    assert report.overlap == Overlap(rows=1, prompts=0)


def test_shared_prefix_is_exact(tmp_path):
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    store = open_rows(tmp_path, [row(f"q {i}", "yes") for i in range(4500)] + [row("other", "no")], template)
    prefix = audit(store, template).train.shared_prefix
    samples = [store[i].input_ids.tolist() for i in range(len(store))]
    assert len({tuple(s[:prefix]) for s in samples}) == 1
    assert len({tuple(s[: prefix + 1]) for s in samples}) > 1


def test_double_bos_is_refused(tmp_path):
    """A tokenizer that adds a BOS, and rows that already begin with two of them."""
    template = load_template(SMOLLM2, "plain", ["prompt_completion"])
    template.bos_id = 1
    rows = [
        {"prompt": "<|im_start|><|im_start|>a", "completion": "b"},
        {"prompt": "<|im_start|>a", "completion": "b"},
    ]
    report = audit(open_rows(tmp_path, rows, template), template)
    assert report.train.double_bos == 1
    with pytest.raises(DataError, match="1 of 2 training samples begin with two BOS tokens"):
        report.refuse()


def test_stop_token_that_is_always_cut_off_is_refused(tmp_path):
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    report = audit(open_rows(tmp_path, [row("a", "w " * 300)] * 2, template), template)
    with pytest.raises(DataError, match=r"no training sample teaches a stop token .*max_seq_length=128 cuts it off"):
        report.refuse()


def test_template_without_a_turn_end_is_refused(tmp_path):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SMOLLM2 / name).read_bytes())
    (folder / "chat_template.jinja").write_text(source)
    template = load_template(folder, "chat", ["alpaca"])
    report = audit(open_rows(tmp_path, [row("a", "b")], template), template)
    with pytest.raises(DataError, match="the chat template ends no answer with one"):
        report.refuse()


def test_nothing_learned_and_no_rows_are_refused(tmp_path):
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    report = audit(open_rows(tmp_path, [row("a", "b")], template), template)
    for change, reason in (
        ({"num_loss_tokens": 0}, "no token of the training rows"),
        ({"rows_kept": 0}, "no training rows"),
    ):
        with pytest.raises(DataError, match=reason):
            dataclasses.replace(report, train=dataclasses.replace(report.train, **change)).refuse()


def test_skipping_is_proposed_only_if_rows_are_left(tmp_path):
    template = load_template(SMOLLM2, "chat", ["alpaca"])
    bad = [row("", "x")] * 3
    with pytest.raises(DataError, match="3 of 3 rows cannot be used") as caught:
        open_rows(tmp_path, bad, template)
    assert "on_bad_row" not in str(caught.value)
    with pytest.raises(DataError, match=r"data\.on_bad_row=skip"):
        open_rows(tmp_path, [*bad, row("q", "x")], template, "some.jsonl")
