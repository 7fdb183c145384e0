"""Text generation by continuous batching: a fixed pool of slots, refilled with waiting prompts as they become free."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.data.examples import Example
from strop.data.prompts import as_question
from strop.data.template import Template
from strop.errors import OutOfMemoryError
from strop.evaluation.decode_step import Sampling, choose_steps
from strop.evaluation.kv_cache import KVCache, read_prompts
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter

_CPU_SLOTS, _CPU_BYTES = 32, 2 << 30
"""A CPU gains little from running more sequences at once, and strop shares its memory with other programs."""

_GPU_SLOTS, _GPU_SHARE = 256, 0.6
"""On a GPU, apart from reading the cache, a step takes about as long for 256 sequences as for one. The cache may use
this share of the free memory; prompts and graphs need some too."""

_CAPACITY = 128
"""A slot's positions are a multiple of this, so that captured steps have few different shapes."""

_PREFILL_TOKENS = 8192
"""Most prompt tokens read at a time, unless a single prompt has more."""

_REFILL = 8
"""Free slots are refilled once they make up an eighth of the pool: reading one prompt costs as much as several."""


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """The answer to one prompt: its ids without the stop token, and whether it ended with one."""

    ids: list[int]
    stopped: bool


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    slots: int | None = None,
) -> list[GeneratedAnswer]:
    """Answer every prompt greedily; results are in the order of the prompts, for any number of slots."""
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for row, token in stream(decoder, prompts, stop_ids, max_new_tokens, slots=slots):
        if token in stop_ids:
            stopped[row] = True
        else:
            written[row].append(token)
    return [GeneratedAnswer(*pair) for pair in zip(written, stopped, strict=True)]


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
    slots: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (index of the prompt, next token) as answers grow; a stop token is yielded and ends its answer.

    Args:
        decoder: With or without its LoRA terms enabled; must not change until the last token.
        prompts: Token ids, at least one each. If there are more prompts than slots, the longest go first.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer to a prompt, in tokens.
        temperature: 0 takes the likeliest token; above 0, samples from softmax(logits / temperature).
        seed: Seed of the sampling; a prompt's random numbers depend only on it and on the prompt's index.
        top_p: Sample only from the likeliest tokens with this total probability.
        slots: Sequences that run at once; None means as many as memory allows.

    Raises:
        OutOfMemoryError: There is not enough memory for a single sequence.
    """
    sampling = Sampling(temperature, top_p, seed)
    if not prompts or max_new_tokens < 1:
        return
    decoder.eval()
    capacity = -(-(max(map(len, prompts)) + max_new_tokens) // _CAPACITY) * _CAPACITY
    slots = slots or slots_that_fit(decoder, capacity)
    cache = KVCache(decoder.config, min(slots, len(prompts)), capacity, decoder.dtype, decoder.device)
    yield from _Pool(decoder, cache, prompts, frozenset(stop_ids), max_new_tokens, sampling).run()


def slots_that_fit(decoder: Decoder, capacity: int) -> int:
    """How many sequences of `capacity` tokens can run at once in the free memory.

    Raises:
        OutOfMemoryError: Not even one fits.
    """
    bytes_per_slot = capacity * KVCache.bytes_per_token(decoder.config, decoder.dtype)
    device = decoder.device
    if device.type != "cuda":
        return max(1, min(_CPU_SLOTS, _CPU_BYTES // bytes_per_slot))
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    if (fit := int(_GPU_SHARE * free) // bytes_per_slot) < 1:
        raise OutOfMemoryError(
            f"a sequence of {capacity:,} tokens needs {bytes_per_slot / 2**30:.1f} GiB for its keys and values, "
            f"but only {free / 2**30:.1f} GiB are free; ask for fewer new tokens or use a GPU with more memory"
        )
    return min(_GPU_SLOTS, fit)


@dataclass(slots=True)
class _Sequence:
    row: int
    token: int
    length: int
    """Tokens in the cache; the last chosen token is not in it yet."""
    final: int
    generator: torch.Generator


class _Pool:
    """The slots, the sequences running in them, and the waiting prompts."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        prompts: Sequence[Sequence[int]],
        stop_ids: frozenset[int],
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        self._decoder, self._cache, self._prompts = decoder, cache, prompts
        self._stop_ids, self._max_new_tokens, self._sampling = stop_ids, max_new_tokens, sampling
        self._steps = choose_steps(decoder, cache)
        self._running: dict[int, _Sequence] = {}
        self._waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # the longest is taken first

    def run(self) -> Iterator[tuple[int, int]]:
        """Yield every token of every answer. Inference mode never spans a yield: it would leak into the caller."""
        while self._waiting or self._running:
            free = self._cache.slots - len(self._running)
            if self._waiting and (not self._running or free * _REFILL >= self._cache.slots):
                chosen = self._fill()
            else:
                chosen = self._step()
            for slot, token in chosen:
                yield self._take(slot, token)

    @torch.inference_mode()
    def _fill(self) -> list[tuple[int, int]]:
        """Read waiting prompts into free slots, as many as the budget allows."""
        rows: list[int] = []
        free = [slot for slot in range(self._cache.slots) if slot not in self._running]
        room = _PREFILL_TOKENS
        while self._waiting and len(rows) < len(free):
            room -= len(self._prompts[self._waiting[-1]])
            if rows and room < 0:
                break
            rows.append(self._waiting.pop())
        slots = free[: len(rows)]
        prompts = [self._prompts[row] for row in rows]
        logits = read_prompts(self._decoder, self._cache, prompts, slots, self._max_new_tokens)
        for slot, row, prompt in zip(slots, rows, prompts, strict=True):
            length = len(prompt)
            final = length + self._max_new_tokens
            self._running[slot] = _Sequence(row, -1, length, final, self._sampling.generator(row))
        return self._choose(logits, slots)

    @torch.inference_mode()
    def _step(self) -> list[tuple[int, int]]:
        """One more token for every running sequence."""
        filled = max(sequence.length for sequence in self._running.values()) + 1
        self._close_ranks()
        batch, width = self._steps.shape(max(self._running) + 1, filled)
        block = [[0, 0, 0]] * batch  # an empty slot computes a token that nothing reads
        for slot, sequence in self._running.items():
            block[slot] = [sequence.token, sequence.length, sequence.final]
            sequence.length += 1
        slots = list(self._running)
        logits = self._steps(torch.tensor(block).t().contiguous(), width)
        return self._choose(logits if slots == list(range(batch)) else logits[slots], slots)

    def _close_ranks(self) -> None:
        """Move the last sequences into the gaps before them if that makes the step smaller."""
        wanted, _ = self._steps.shape(len(self._running), 1)
        gaps = [slot for slot in range(len(self._running)) if slot not in self._running]
        for gap in gaps:
            last = max(self._running)
            if self._steps.shape(last + 1, 1)[0] <= wanted:
                return
            self._cache.move(last, gap, self._running[last].length)
            self._running[gap] = self._running.pop(last)

    def _choose(self, logits: Tensor, slots: list[int]) -> list[tuple[int, int]]:
        generators = [self._running[slot].generator for slot in slots]
        return list(zip(slots, self._sampling.choose(logits, generators), strict=True))

    def _take(self, slot: int, token: int) -> tuple[int, int]:
        """Record a token; a finished sequence leaves its slot."""
        sequence = self._running[slot]
        sequence.token = token
        if token in self._stop_ids or sequence.length + 1 == sequence.final:
            del self._running[slot]
        return sequence.row, token


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A loaded model that answers questions, each independent of the others.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.
    """

    adapter: LoraAdapter
    template: Template
    max_new_tokens: int
    temperature: float

    def stream(self, question: str | Example, tuned: bool = True) -> Iterator[str]:
        """The answer to a question, piece by piece.

        Args:
            question: The user's text; under the alpaca template, an instruction and, after the heading "### Input:",
                its input. Or a row, which is asked up to its last answer.
            tuned: False asks the base model.

        Raises:
            DataError: The template has no place for something of the row.
        """
        self.adapter.enable(tuned)
        example = as_question(self.template.name, question) if isinstance(question, str) else question
        prompt_ids = self.template.encode_prompt(example)
        ids: list[int] = []
        shown = ""
        for _, token in stream(
            self.adapter.decoder, [prompt_ids], self.template.stop_ids, self.max_new_tokens, self.temperature
        ):
            if token in self.template.stop_ids:
                return
            ids.append(token)
            text = self.template.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # a character whose last bytes are still missing
                yield text[len(shown) :]
                shown = text
