"""How a tokenizer is described to llama.cpp; that it then gives the same ids is in numerics/test_gguf_parity.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from strop.data.template import Template
from strop.data.tokenizer import load_tokenizer
from strop.errors import RecipeError
from strop.exporting.gguf.metadata import (
    add_tokenizer,
    name_for_tokenizer,
    name_of_split,
    pieces_and_types,
    scores,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"
# As the tokenizer.json of Llama 3, Qwen2 and Mistral Nemo have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def backend(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return data


def split_by(regex: str, whole_words: bool) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"ignore_merges": whole_words},
    }


@pytest.mark.parametrize(
    ("regex", "whole_words", "name"), [(LLAMA3, True, "llama-bpe"), (QWEN2, False, "qwen2"), (NEMO, True, "tekken")]
)
def test_splits_have_llama_cpps_names(regex: str, whole_words: bool, name: str) -> None:
    assert name_of_split(split_by(regex, whole_words)) == name
    for other in (split_by(regex + "|x", whole_words), split_by(regex, not whole_words)):
        with pytest.raises(RecipeError, match="--to merged"):
            name_of_split(other)


def test_digits_make_smollm() -> None:
    data = backend(SMOLLM2)
    assert name_of_split(data) == "smollm"
    data["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    with pytest.raises(RecipeError):
        name_of_split(data)


def test_every_row_of_the_embedding_has_a_piece_and_a_type() -> None:
    data = backend(PHI3)
    pieces, types = pieces_and_types(data, 32064)
    assert len(pieces) == len(types) == len(set(pieces)) == 32064
    wanted = {"<unk>": 2, "<s>": 3, "<0x0A>": 6, "▁What": 1, "<|end|>": 3}
    assert {piece: types[pieces.index(piece)] for piece in wanted} == wanted
    longer, more = pieces_and_types(data, 32070)
    assert longer[32069] == "[PAD32069]"
    assert more[32069] == 5


def test_earlier_merges_score_higher() -> None:
    data = backend(PHI3)
    pieces, _ = pieces_and_types(data, 32064)
    of = dict(zip(pieces, scores(data, pieces), strict=True))
    first, later = data["model"]["merges"][0], data["model"]["merges"][-1]
    joined = ["".join(merge if isinstance(merge, list) else merge.split(" ", 1)) for merge in (first, later)]
    assert of[joined[0]] == 0.0 > of[joined[1]] > of["<s>"] == -1e6


def test_a_piece_that_two_merges_make_has_the_earlier_ones_score() -> None:
    merges = ["b c", "a bc", "x y", "ab c"]
    data = {"model": {"merges": merges}}
    assert scores(data, ["bc", "abc", "xy", "q"]) == [0.0, -1.0, -2.0, -1e6]
    assert scores({"model": {"merges": [each.split() for each in merges]}}, ["abc"]) == [-1.0]


def test_only_tokens_that_swallow_blanks_make_a_phi_3() -> None:
    phi3, smollm2 = load_tokenizer(PHI3), load_tokenizer(SMOLLM2)
    assert name_for_tokenizer(phi3, "census") == "census (Phi-3)"
    assert name_for_tokenizer(phi3, "My-phi3-run") == "My-phi3-run"
    assert name_for_tokenizer(smollm2, "census") == "census"
    assert name_for_tokenizer(smollm2, "as-good-as-Phi-3") == "as-good-as-Phi 3"


class Writer:
    """Keeps what `gguf.GGUFWriter` would write, by key."""

    def __init__(self) -> None:
        self.written: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.written.__setitem__(name.removeprefix("add_"), value)


def roles(folder: Path, eos: str, stops: set[str], template: str = "chat", bos_id: int | None = None) -> dict[str, Any]:
    """What a GGUF file says of special tokens; ids as their texts."""
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = eos
    made = Template(tokenizer, template, "completion")  # type: ignore[arg-type]
    made.stop_ids = frozenset(tokenizer.convert_tokens_to_ids(list(stops)))
    made.bos_id = bos_id
    writer = Writer()
    add_tokenizer(writer, made, 49152 if folder == SMOLLM2 else 32064)
    return {
        name.removesuffix("_token_id"): tokenizer.convert_ids_to_tokens(value) if name.endswith("_id") else value
        for name, value in writer.written.items()
        if name.endswith(("_token_id", "bos_token", "eos_token"))
    }


@pytest.mark.parametrize(
    ("eos", "stops", "wanted"),
    [
        ("<|im_end|>", {"<|im_end|>"}, ("<|im_end|>", None, None)),
        # eos is the tokenizer's, whichever has the lower id: <|endoftext|> is 0, <|im_start|> 1, <|im_end|> 2
        ("<|im_end|>", {"<|im_end|>", "<|endoftext|>"}, ("<|im_end|>", "<|endoftext|>", None)),
        ("<|endoftext|>", {"<|im_end|>", "<|endoftext|>"}, ("<|endoftext|>", "<|im_end|>", None)),
        # the second is the one that ends a turn
        (
            "<|endoftext|>",
            {"<|im_end|>", "<|im_start|>", "<|endoftext|>"},
            ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
        ),
        # a tokenizer whose eos ends no answer: the lowest that does
        ("<|endoftext|>", {"<|im_end|>", "<|im_start|>"}, ("<|im_start|>", "<|im_end|>", None)),
    ],
)
def test_stop_tokens_have_their_roles(eos: str, stops: set[str], wanted: tuple[str | None, ...]) -> None:
    found = roles(SMOLLM2, eos, stops)
    assert tuple(found.get(name) for name in ("eos", "eot", "eom")) == wanted
    assert found["add_eos_token"] is False


@pytest.mark.parametrize("bos_id", [None, 1])
def test_bos_is_added_where_training_put_it(bos_id: int | None) -> None:
    found = roles(PHI3, "<|endoftext|>", {"<|end|>", "<|endoftext|>"}, "plain", bos_id)
    assert found["add_bos_token"] is (bos_id is not None)
    assert (found["bos"], found["eos"], found["eot"], found["unk"]) == ("<s>", "<|endoftext|>", "<|end|>", "<unk>")
