"""Prompts that join and leave a running batch, against each of them answered alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import emulated_cuda_graphs
from strop.evaluation import pool as pool_module
from strop.evaluation.generate import generate, stream
from strop.evaluation.kv_cache import KVCache
from strop.evaluation.pool import Pool, Prompt, Unwanted
from strop.evaluation.sampling import Sampling, choose
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint

HEADER = [70, 71, 72, 73, 74, 75, 76, 77, 78]
IDS = [
    [5, 9, 33, 7, 21, 40, 8],
    [11],
    [90, 4, 77, 12, 6, 6, 30, 31, 32, 50, 51, 52, 53, 17, 18],
    [*HEADER, 5, 6, 7],
    [*HEADER, 5, 9],
    HEADER,
]
Answers = list[list[int]]


@pytest.fixture
def adapter(tmp_path: Path) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(write_checkpoint(tmp_path, "llama3"), torch.float64), LoraSection(r=4), seed=1)
    adapter.flat.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    return adapter


def mixed() -> list[Prompt]:
    """Prompts that have nothing in common: limits, temperatures, nuclei, seeds and models."""
    return [
        Prompt(ids, 3 + 2 * i, Sampling((0.0, 1.3, 0.8)[i % 3], (1.0, 0.9)[i % 2], seed=i), tuned=i % 4 != 1)
        for i, ids in enumerate(IDS * 2)
    ]


def alone(adapter: LoraAdapter, prompt: Prompt) -> list[int]:
    adapter.enable(prompt.tuned)
    how = prompt.sampling
    tokens = stream(
        adapter.decoder, [prompt.ids], {2}, prompt.max_new_tokens, how.temperature, how.seed, top_p=how.top_p
    )
    return [token for _, token in tokens]


def run(pool: Pool, prompts: Sequence[Prompt], arrives: Callable[[int], int]) -> Answers:
    """The answers of a pool where prompt i arrives after `arrives(i)` turns."""
    answers: dict[Prompt, list[int]] = {prompt: [] for prompt in prompts}
    for turn in range(1000):
        for i, prompt in enumerate(prompts):
            if arrives(i) == turn:
                pool.add(prompt)
        for prompt, token in pool.advance():
            assert isinstance(token, int), token
            answers[prompt].append(token)
        if pool.is_idle and turn > max(map(arrives, range(len(prompts)))):
            return list(answers.values())
    raise AssertionError("it does not end")


@pytest.mark.parametrize("slots", [1, 3, None])
@pytest.mark.parametrize(
    "arrives", [lambda i: 0, lambda i: i, lambda i: 5 * (i % 3)], ids=["at once", "one by one", "in waves"]
)
def test_an_answer_does_not_depend_on_its_neighbours(
    arrives: Callable[[int], int], slots: int | None, adapter: LoraAdapter
) -> None:
    prompts = mixed()
    want = [alone(adapter, prompt) for prompt in prompts]
    assert want[1] != alone(adapter, Prompt(prompts[1].ids, 5, prompts[1].sampling, tuned=True))
    pool = Pool(adapter.decoder, {2}, adapter, slots)
    assert run(pool, prompts, arrives) == want
    assert run(pool, prompts, arrives) == want, "the same pool again"


def test_base_and_tuned_share_a_captured_step(adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph reads from its own block which slots are whose; the same slots change their model between the rounds."""
    prompts = [Prompt(IDS[0], 12, tuned=i % 2 == 0) for i in range(4)]
    others = [Prompt(IDS[0], 12, tuned=i % 2 == 1) for i in range(4)]
    want = [alone(adapter, prompt) for prompt in (*prompts, *others)]
    graphs = emulated_cuda_graphs.emulate_decode_graphs(monkeypatch)
    pool = Pool(adapter.decoder, {2}, adapter, 4)
    assert run(pool, prompts, lambda i: 0) + run(pool, others, lambda i: 0) == want
    assert sum(graph.replays for graph in graphs) > 10


def test_a_prompt_that_leaves_frees_its_slot(adapter: LoraAdapter) -> None:
    first, second, third = (Prompt(IDS[i], 20) for i in range(3))
    pool = Pool(adapter.decoder, set(), adapter, slots=2)
    for prompt in (first, second, third):
        pool.add(prompt)
    heard: list[Prompt] = []
    for _ in range(8):
        heard += [prompt for prompt, _ in pool.advance()]
    assert third not in heard
    assert pool.num_waiting == 1
    pool.remove(first)
    answer = []
    while not pool.is_idle:
        for prompt, token in pool.advance():
            assert prompt is not first
            answer += [token] if prompt is third else []
    assert answer == generate(adapter.decoder, [IDS[2]], set(), 20)[0].ids
    pool.add(first)
    pool.remove(first)
    assert pool.is_idle


def test_a_longer_prompt_gets_a_larger_cache_while_others_run(
    adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for four slots of 128 positions, or two of 256: those that run are moved, and those over it wait."""
    token = KVCache.bytes_per_token(adapter.decoder.config, adapter.decoder.dtype)
    monkeypatch.setattr(pool_module, "_CPU_BYTES", 4 * 128 * token)
    prompts = [Prompt(IDS[0], 60), Prompt(IDS[2], 60), Prompt(IDS[3] * 10, 100), *(Prompt(ids, 50) for ids in IDS)]
    want = [generate(adapter.decoder, [prompt.ids], {2}, prompt.max_new_tokens)[0].ids for prompt in prompts]
    shapes: list[tuple[int, int]] = []
    make = KVCache.__init__

    def noting(self, config, slots, capacity, *rest):
        shapes.append((slots, capacity))
        make(self, config, slots, capacity, *rest)

    monkeypatch.setattr(KVCache, "__init__", noting)
    got = run(Pool(adapter.decoder, {2}, adapter), prompts, lambda i: 4 * i)
    assert [[token for token in answer if token != 2] for answer in got] == want
    assert shapes[:3] == [(4, 128), (2, 256), (4, 128)]


def test_a_waiting_prompt_does_not_stop_those_that_run(adapter: LoraAdapter) -> None:
    """Long prompts are read one at a time, and between two readings the running answers grow."""
    pool = Pool(adapter.decoder, set(), adapter, prefill_tokens=16)
    talking = Prompt(IDS[0], 40)
    pool.add(talking)
    pool.advance()
    for _ in range(5):
        pool.add(Prompt(IDS[3] * 5, 4))
    turns = [any(prompt is talking for prompt, _ in pool.advance()) for _ in range(10)]
    assert turns == [True, False] * 5


class Broken(RuntimeError):
    pass


def test_what_breaks_one_prompt_is_that_prompts_alone(adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pool_module.read_prompts

    def reading(decoder, cache, prompts, *rest):
        if any(99 in prompt for prompt in prompts):
            raise Broken
        return read(decoder, cache, prompts, *rest)

    monkeypatch.setattr(pool_module, "read_prompts", reading)
    good, bad = [Prompt(ids, 6) for ids in IDS[:3]], Prompt([5, 99], 6)
    pool = Pool(adapter.decoder, {2}, adapter)
    for prompt in (good[0], bad, *good[1:]):
        pool.add(prompt)
    heard: list[tuple[Prompt, int | Exception]] = []
    while not pool.is_idle:
        heard += pool.advance()
    assert [type(outcome) for prompt, outcome in heard if prompt is bad] == [Broken]
    for prompt in good:
        assert [token for one, token in heard if one is prompt] == alone(adapter, prompt)


def test_after_a_broken_step_the_pool_goes_on(adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(ids, 6) for ids in IDS[:3]]
    pool = Pool(adapter.decoder, {2}, adapter)
    pool.add(prompts[0])
    pool.advance()
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "logits", lambda *_: (_ for _ in ()).throw(Broken()))
        [(prompt, error)] = pool.advance()
    assert prompt is prompts[0]
    assert isinstance(error, Broken)
    assert run(pool, prompts[1:], lambda i: 0) == [alone(adapter, prompt) for prompt in prompts[1:]]


def test_a_list_of_prompts_raises_what_broke(adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "logits", lambda *_: (_ for _ in ()).throw(Broken()))
    with pytest.raises(Broken):
        generate(adapter.decoder, IDS, {2}, 4)


def test_logits_that_are_no_numbers_end_their_own_answer_only() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [float("nan")] * 3, [5.0, 0.0, 1.0]])
    samplings = [Sampling(0.5, seed=1), Sampling(0.5, seed=1), Sampling()]
    first, second, third = choose(logits, samplings, [sampling.generator(0) for sampling in samplings])
    assert (first, third) == (1, 0)
    assert isinstance(second, RuntimeError)


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-7, 1e-4])
def test_the_smallest_temperatures_take_the_likeliest_token(temperature: float) -> None:
    logits, how = torch.tensor([[30.0, -1e4, 31.0]]), Sampling(temperature, 0.9)
    assert choose(logits, [how], [how.generator(0)]) == [2]


def test_a_prompt_that_nobody_wants_any_more_is_not_read_to_its_end(adapter: LoraAdapter) -> None:
    good, given_up = Prompt(IDS[0], 6), Prompt(IDS[2], 6)
    layers: list[Prompt] = []

    def is_wanted(prompt: Prompt) -> bool:
        layers.append(prompt)
        return prompt is good or layers.count(given_up) < 2

    pool = Pool(adapter.decoder, {2}, adapter, is_wanted=is_wanted)
    pool.add(given_up)
    [(prompt, outcome)] = pool.advance()
    assert prompt is given_up
    assert isinstance(outcome, Unwanted)
    assert layers == [given_up] * 2, "of three layers"
    assert run(pool, [good], lambda i: 0) == [alone(adapter, good)]
