"""How a tokenizer is described to llama.cpp; that it then gives the same ids is in numerics/test_gguf_parity.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from strop.data.tokenizer import load_tokenizer
from strop.errors import RecipeError
from strop.exporting.gguf.metadata import name_for_tokenizer, name_of_split, pieces_and_types, scores

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


def test_only_tokens_that_swallow_blanks_make_a_phi_3() -> None:
    phi3, smollm2 = load_tokenizer(PHI3), load_tokenizer(SMOLLM2)
    assert name_for_tokenizer(phi3, "census") == "census (Phi-3)"
    assert name_for_tokenizer(phi3, "My-phi3-run") == "My-phi3-run"
    assert name_for_tokenizer(smollm2, "census") == "census"
    assert name_for_tokenizer(smollm2, "as-good-as-Phi-3") == "as-good-as-Phi 3"
