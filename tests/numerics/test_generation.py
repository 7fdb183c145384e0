"""Generation in a pool of slots against recomputing everything, and against transformers' generate."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

import emulated_cuda_graphs
from strop.evaluation import decode_step
from strop.evaluation.generate import GeneratedAnswer, generate, stream
from strop.evaluation.kv_cache import KVCache
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder, attend_packed
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import FAMILIES, load_oracle, write_checkpoint

HEADER = [70, 71, 72, 73, 74, 75, 76, 77, 78]
PROMPTS = [
    [5, 9, 33, 7, 21, 40, 8],
    [11],
    [90, 4, 77, 12, 6, 6, 30, 31, 32, 50, 51, 52, 53, 17, 18],
    [*HEADER, 5, 6, 7],
    [*HEADER, 5, 9],
    HEADER,
    [*HEADER, 5, 6, 7],
    [*HEADER, 99, 3, 14, 15, 92, 65, 35, 89],
    [8, 8, 8],
]


def without_cache(decoder: Decoder, prompt: list[int], count: int, stop_ids: set[int]) -> list[int]:
    """Greedy tokens, reading the whole sequence again for each; LongRoPE is decided by the length so far."""
    ids = list(prompt)
    for _ in range(count):
        tokens = torch.tensor(ids)
        tree = Tree.of((len(ids),))
        final = torch.full_like(tokens, len(ids))
        with torch.no_grad():
            hidden = decoder.hidden_states(tokens, torch.arange(len(ids)), final, attend_packed(tree))
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
    # stop tokens end answers at different times, so slots become free and sequences close ranks on the way
    stops = {free[0].ids[3], free[2].ids[7]}
    got = generate(decoder, PROMPTS, stops, max_new_tokens=12, slots=3)
    assert [answer.ids for answer in got] == [without_cache(decoder, prompt, 12, stops) for prompt in PROMPTS]
    assert got[0].stopped
    assert len(got[0].ids) <= 3


def transformers_answers(folder: Path, dtype: torch.dtype, count: int, stop: int) -> list[list[int]]:
    oracle = load_oracle(folder, dtype)
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=stop
        )
        new = out[0, len(prompt) :].tolist()
        answers.append(new[: new.index(stop)] if stop in new else new)
    return answers


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_equals_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, family)
    want = transformers_answers(folder, dtype, 10, stop=2)
    got = generate(load_decoder(folder, dtype), PROMPTS, {2}, max_new_tokens=10, slots=4)
    assert [answer.ids for answer in got] == want


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    return load_decoder(write_checkpoint(tmp_path, "phi3-window"), torch.float64)


@pytest.fixture
def want(decoder: Decoder) -> list[GeneratedAnswer]:
    stops = {without_cache(decoder, PROMPTS[0], 12, set())[3]}
    texts = [without_cache(decoder, prompt, 12, stops) for prompt in PROMPTS]
    return [GeneratedAnswer(text, len(text) < 12) for text in texts]


def answers(decoder: Decoder, slots: int) -> list[GeneratedAnswer]:
    return generate(decoder, PROMPTS, {without_cache(decoder, PROMPTS[0], 12, set())[3]}, 12, slots)


@pytest.mark.parametrize("slots", [1, 2, 5, 9, 40])
def test_the_number_of_slots_changes_nothing(slots: int, decoder: Decoder, want: list[GeneratedAnswer]) -> None:
    assert 0 < sum(answer.stopped for answer in want) < len(want)
    assert answers(decoder, slots) == want


@pytest.mark.parametrize(
    "sabotage",
    [
        (KVCache, "move", lambda self, source, target, length: None),
        (KVCache, "move", lambda self, source, target, length: self._k[:, target].copy_(self._k[:, source])),
        (Tree, "places", lambda self: np.roll(tree_places(self), 1)),
        (decode_step, "compute", lambda decoder, cache, block, width: compute(decoder, cache, block, width - 1)),
    ],
)
def test_each_part_can_be_seen_to_fail(
    sabotage: tuple[object, str, object], decoder: Decoder, want: list[GeneratedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*sabotage)
    with contextlib.suppress(IndexError, RuntimeError):  # torch itself saw it
        assert answers(decoder, 5) != want


tree_places, compute = Tree.places, decode_step.compute


def test_captured_steps_are_the_same_steps(
    decoder: Decoder, want: list[GeneratedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = emulated_cuda_graphs.emulate_decode_graphs(monkeypatch)
    assert answers(decoder, 4) == want
    assert {graph.shape for graph in graphs} <= {(4, 128), (2, 128), (1, 128)}
    assert sum(graph.replays for graph in graphs) > 8


def test_a_graph_that_reads_other_tensors_is_seen(
    decoder: Decoder, want: list[GeneratedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulation's control: a replay computes from the block that was captured, not from the caller's."""
    emulated_cuda_graphs.emulate_decode_graphs(monkeypatch)
    capture = decode_step.CapturedSteps._capture

    def stale(self, block, width, tuned):
        made = capture(self, block, width, tuned)
        return decode_step._Graph(made.graph, made.block_3B.clone(), made.logits_BV)

    monkeypatch.setattr(decode_step.CapturedSteps, "_capture", stale)
    assert answers(decoder, 4) != want


def test_a_shared_prefix_is_read_once(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    hidden_states = Decoder.hidden_states

    def counting(self, ids, *rest):
        read.append(len(ids))
        return hidden_states(self, ids, *rest)

    monkeypatch.setattr(Decoder, "hidden_states", counting)
    generate(decoder, [[*HEADER, 5, i] for i in range(9)], set(), 1)
    assert read == [len(HEADER) + 1 + 9]


def test_the_base_is_the_adapter_switched_off(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama3")
    want = generate(load_decoder(folder, torch.float64), PROMPTS, {2}, 8)
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4), seed=1)
    adapter.flat.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    tuned = generate(adapter.decoder, PROMPTS, {2}, 8)
    adapter.enable(False)
    assert generate(adapter.decoder, PROMPTS, {2}, 8) == want != tuned


def test_sampling_is_seeded_and_varies(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama2"), torch.float32)
    draws = [list(stream(decoder, PROMPTS[:1], set(), 20, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_prompts_draws_do_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama2"), torch.float64)

    def drawn(slots: int) -> list[list[int]]:
        tokens = list(stream(decoder, PROMPTS, set(), 8, temperature=1.5, seed=3, slots=slots))
        return [[token for row, token in tokens if row == i] for i in range(len(PROMPTS))]

    assert drawn(1) == drawn(4)
    assert drawn(4)[3] != drawn(4)[6], "the same prompt twice, two answers"


def test_a_narrow_nucleus_is_greedy(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama2"), torch.float32)
    greedy = list(stream(decoder, PROMPTS[:1], set(), 20))
    assert list(stream(decoder, PROMPTS[:1], set(), 20, temperature=1.5, top_p=1e-6)) == greedy
    assert list(stream(decoder, PROMPTS[:1], set(), 20, temperature=1.5, top_p=0.99)) != greedy
