"""Generation with the KV cache against recomputing everything, and against transformers' generate."""

from pathlib import Path

import pytest
import torch

from strop.evaluation.generate import generate, stream
from strop.model.decoder import Decoder, attend_packed
from strop.model.weights import load_decoder
from strop.ops.attention import Packing
from tiny_models import load_oracle, write_checkpoint

PROMPTS = [[5, 9, 33, 7, 21, 40, 8], [11], [90, 4, 77, 12, 6, 6, 30, 31, 32, 50, 51, 52, 53, 17, 18]]


def without_cache(decoder: Decoder, prompt: list[int], count: int, stop_ids: set[int]) -> list[int]:
    """Greedy tokens, reading the whole sequence again for each; long-rope is decided by the final length."""
    ids = list(prompt)
    for _ in range(count):
        tokens = torch.tensor(ids)
        packing = Packing.of((len(ids),))
        final = torch.full_like(tokens, len(prompt) + count)
        with torch.no_grad():
            hidden = decoder.hidden_states(tokens, torch.arange(len(ids)), final, attend_packed(packing))
            token = int(decoder.logits(hidden[-1:]).argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["smollm2", "mistral-window", "phi3", "phi3-longrope", "qwen2", "qwen3", "llama3"])
def test_cache_equals_recomputing(family: str, tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, family), torch.float64)
    free = generate(decoder, PROMPTS, set(), max_new_tokens=12)
    assert [answer.ids for answer in free] == [without_cache(decoder, prompt, 12, set()) for prompt in PROMPTS]
    assert not any(answer.stopped for answer in free)
    # stop tokens end answers at different times, which shrinks the batch on the way
    stops = {free[0].ids[3], free[2].ids[7]}
    got = generate(decoder, PROMPTS, stops, max_new_tokens=12)
    assert [answer.ids for answer in got] == [without_cache(decoder, prompt, 12, stops) for prompt in PROMPTS]
    assert got[0].stopped
    assert len(got[0].ids) <= 3


def test_greedy_equals_transformers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama3")
    oracle, decoder = load_oracle(folder, torch.float32), load_decoder(folder, torch.float32)
    for prompt, answer in zip(PROMPTS, generate(decoder, PROMPTS, {2}, max_new_tokens=10), strict=True):
        want = oracle.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=2)[0]
        assert answer.ids == [t for t in want[len(prompt) :].tolist() if t != 2]


def test_batch_size_changes_nothing(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "qwen3"), torch.float64)
    answers = [generate(decoder, PROMPTS, {2}, 10, batch_size=size) for size in (1, 2, 3)]
    assert answers[0] == answers[1] == answers[2]


def test_sampling_is_seeded_and_varies(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama2"), torch.float32)
    draws = [list(stream(decoder, PROMPTS[:1], set(), 20, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
