"""LongRoPE's two sets of frequencies: which one a sample or a growing answer takes, on both sides of the border."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from strop.evaluation.generate import generate
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.model.pretrained.weights import load_decoder
from tiny_models import load_oracle, write_checkpoint

BORDER = 16
"""The original_max_position_embeddings of the tiny Phi-3 with LongRoPE."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("longrope") / "model", "phi3-longrope")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return load_decoder(folder, torch.float64)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> torch.nn.Module:
    return load_oracle(folder, torch.float64)


def ids(length: int) -> Tensor:
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(length))


def logits(decoder: Decoder, sample: Tensor) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.packed_hidden_states(sample, Tree.of((len(sample),))))


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1])
def test_a_sample_is_long_from_one_token_over_the_border(
    length: int, decoder: Decoder, oracle: torch.nn.Module
) -> None:
    with torch.no_grad():
        want = oracle(ids(length)[None]).logits[0]
    assert (logits(decoder, ids(length)) - want).abs().max() < 1e-9


def test_the_border_can_be_seen(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one token to either side, the border moves a sample by much more than rounding."""
    for border, length in ((BORDER - 1, BORDER), (BORDER + 1, BORDER + 1)):
        before = logits(decoder, ids(length))
        with monkeypatch.context() as patch:
            patch.setattr(decoder.rotary_table, "long_from", border)
            assert (logits(decoder, ids(length)) - before).abs().max() > 0.1


@pytest.mark.parametrize("length", [5, BORDER - 1, BORDER, BORDER + 1, BORDER + 9])
def test_an_answer_is_that_of_transformers_whatever_its_limit(
    length: int, decoder: Decoder, oracle: torch.nn.Module
) -> None:
    prompt = ids(length)
    mask = torch.ones_like(prompt)[None]
    greedy = oracle.generate(prompt[None], attention_mask=mask, max_new_tokens=30, do_sample=False, eos_token_id=-1)
    want = greedy[0, length:].tolist()
    assert len(want) == 30
    for limit in (1, 2, BORDER, 30):
        assert generate(decoder, [prompt.tolist()], set(), limit)[0].ids == want[:limit]


def test_neighbours_on_other_sides_of_the_border_change_nothing(decoder: Decoder) -> None:
    prompts = [ids(length).tolist() for length in (BORDER, 3, BORDER + 1, BORDER - 1, BORDER + 20)]
    alone = [generate(decoder, [prompt], set(), 20)[0].ids for prompt in prompts]
    for slots in (1, 2, 5):
        assert [answer.ids for answer in generate(decoder, prompts, set(), 20, slots)] == alone
