"""Continuous batching: sequences run together in the slots of a cache, and prompts join them whenever there is room.

The one scheduler of all generation: `evaluation.generate` gives it a list of prompts, `serving.worker` gives it
requests as they arrive. Every prompt has its own limit and way of sampling; prompts to the base model and to the tuned
one share a batch.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.errors import OutOfMemoryError
from strop.evaluation.decode_step import Steps, choose_steps
from strop.evaluation.kv_cache import KVCache, read_prompts
from strop.evaluation.sampling import Sampling, choose
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

_WORTH_MOVING = 2
"""A cache that is long enough is made anew for this many times its slots: what runs in it has to be copied."""

_REFILL = 8
"""Free slots are refilled once they can take all who wait, or make up an eighth of the pool: reading one prompt costs
as much as several."""


_GREEDY = Sampling()


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt, and how it is to be answered.

    Attributes:
        ids: Token ids, at least one.
        max_new_tokens: Longest answer, in tokens; at least one.
        row: Its index. This and the seed decide its random numbers.
        tuned: Whether the adapter is used, if the pool has one.
    """

    ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = _GREEDY
    row: int = 0
    tuned: bool = True


@dataclass(slots=True, eq=False)
class _Sequence:
    """A prompt and its answer so far.

    Attributes:
        ids: Of both.
        length: Tokens in the cache; the last chosen token is not in it yet.
        final: The length of the prompt with its longest answer.
    """

    prompt: Prompt
    ids: list[int]
    final: int
    generator: torch.Generator
    length: int = field(default=0)


def _begin(prompt: Prompt) -> _Sequence:
    ids = list(prompt.ids)
    return _Sequence(prompt, ids, len(ids) + prompt.max_new_tokens, prompt.sampling.generator(prompt.row))


class Unwanted(Exception):
    """The prompts that were being read are not wanted any more."""


Outcome = tuple[Prompt, int | Exception]
"""The next token of a prompt's answer, or what went wrong with it, which ends it."""


class Pool:
    """Slots, the sequences that run in them, and the prompts that wait for one.

    Args:
        decoder: Must not change while a sequence runs.
        stop_ids: Tokens that end an answer; they are returned like others.
        adapter: The decoder's, to answer each prompt with it or without; None leaves the decoder as it is.
        slots: Most sequences that run at once; memory may allow fewer. None means as many as are of use.
        capacity: Positions of a slot, if no prompt needs more: the cache is made anew for one that does.
        prefill_tokens: Most prompt tokens that are read before those that run get their next token.
        is_wanted: Whether a prompt should still be read; asked while it is, which may take long. If not, the outcome is
            `Unwanted`.
    """

    def __init__(
        self,
        decoder: Decoder,
        stop_ids: Collection[int],
        adapter: LoraAdapter | None = None,
        slots: int | None = None,
        capacity: int = 0,
        prefill_tokens: int = _PREFILL_TOKENS,
        is_wanted: Callable[[Prompt], bool] = lambda prompt: True,
    ) -> None:
        self._decoder, self._stop_ids, self._adapter = decoder, frozenset(stop_ids), adapter
        self._most_slots = slots or most_slots(decoder.device)
        self._least_capacity, self._prefill_tokens = capacity, prefill_tokens
        self._is_wanted = is_wanted
        self._long_from = decoder.config.rope.long_from
        self._cache: KVCache | None = None
        self._steps: Steps | None = None
        self._cache_bytes: int | None = None
        self._running: dict[int, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._has_just_read = False

    @property
    def num_waiting(self) -> int:
        """Prompts that have no slot yet."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def add(self, prompt: Prompt) -> None:
        """Let a prompt wait for a slot, behind those that wait already."""
        self._waiting.append(_begin(prompt))

    def remove(self, prompt: Prompt) -> None:
        """Forget a prompt, and free its slot if it has one."""
        self._running = {slot: seq for slot, seq in self._running.items() if seq.prompt is not prompt}
        self._waiting = deque(seq for seq in self._waiting if seq.prompt is not prompt)

    def advance(self) -> list[Outcome]:
        """Read some waiting prompts, or compute one more token for all that run.

        What goes wrong while one prompt is read is the outcome of that prompt alone; what goes wrong in a step, of all
        that run.
        """
        self._decoder.eval()
        joining = self._joining() if self._may_read() else []
        self._has_just_read = bool(joining)
        if joining:
            return self._join(joining)
        try:
            return self._step() if self._running else []
        except Exception as error:
            lost, self._running, self._cache = list(self._running.values()), {}, None
            return [(sequence.prompt, error) for sequence in lost]

    def _may_read(self) -> bool:
        """Whether prompts are to be read now. Between two readings, those that run get a token."""
        if not self._running or not self._waiting or self._cache is None:
            return bool(self._waiting)
        if self._has_just_read:
            return False
        free = self._cache.slots - len(self._running)
        if not free:
            return self._shape_for([*self._running.values(), self._waiting[0]]) is not None
        return free >= len(self._waiting) or free * _REFILL >= self._cache.slots

    def _joining(self) -> list[_Sequence]:
        """Take prompts from the line: of one model, as many as the cache and the reading budget allow."""
        joining, room = list[_Sequence](), self._prefill_tokens
        while self._waiting:
            first = self._waiting[0]
            room -= len(first.ids)
            if joining and (room < 0 or first.prompt.tuned != joining[0].prompt.tuned):
                break
            if self._shape_for([*self._running.values(), *joining, first]) is None:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _join(self, joining: list[_Sequence]) -> list[Outcome]:
        """Read prompts into free slots; if that fails, one by one."""
        try:
            return self._read(joining)
        except Exception as error:
            if len(joining) == 1:
                return [(joining[0].prompt, error)]
        return [outcome for sequence in joining for outcome in self._join([sequence])]

    @torch.inference_mode()
    def _read(self, joining: list[_Sequence]) -> list[Outcome]:
        cache = self._cache_for([*self._running.values(), *joining])
        if self._adapter is not None:
            self._adapter.enable(joining[0].prompt.tuned)
        slots = [slot for slot in range(cache.slots) if slot not in self._running][: len(joining)]

        def check_stop() -> None:
            if not any(self._is_wanted(sequence.prompt) for sequence in joining):
                raise Unwanted

        logits = read_prompts(self._decoder, cache, [sequence.ids for sequence in joining], slots, check_stop)
        for slot, sequence in zip(slots, joining, strict=True):
            sequence.length = len(sequence.ids)
            self._running[slot] = sequence
        return self._choose(logits, slots)

    def _shape_for(self, sequences: Sequence[_Sequence]) -> tuple[int, int] | None:
        """The slots and capacity of a cache for sequences: the cache that there is, if it will do.

        None if they cannot run together.
        """
        longest, cache = max(sequence.final for sequence in sequences), self._cache
        is_long_enough = cache is not None and longest <= cache.capacity
        if cache and is_long_enough and len(sequences) <= cache.slots:
            return cache.slots, cache.capacity
        capacity = max(self._least_capacity, -(-longest // _CAPACITY) * _CAPACITY)
        slots = max(1, self._slots_of(capacity))
        if len(sequences) > slots or (cache and is_long_enough and slots < _WORTH_MOVING * cache.slots):
            return None
        return slots, capacity

    def _slots_of(self, capacity: int) -> int:
        """How many slots of a capacity fit the memory."""
        if self._cache_bytes is None:
            self._cache_bytes = cache_bytes(self._decoder.device)
        fit = self._cache_bytes // (capacity * KVCache.bytes_per_token(self._decoder.config, self._decoder.dtype))
        return min(self._most_slots, fit)

    def _cache_for(self, sequences: Sequence[_Sequence]) -> KVCache:
        """The cache, made anew if these sequences need another; those that run are moved to it.

        Raises:
            OutOfMemoryError: There is not enough memory for a single sequence.
        """
        shape = self._shape_for(sequences)
        assert shape is not None
        if self._cache and shape == (self._cache.slots, self._cache.capacity):
            return self._cache
        if self._decoder.device.type == "cuda" and not self._slots_of(shape[1]):
            raise OutOfMemoryError(
                f"a sequence of {shape[1]:,} tokens does not fit the {(self._cache_bytes or 0) / 2**30:.1f} GiB that "
                "are free for keys and values; ask for fewer new tokens or use a GPU with more memory"
            )
        return self._renew_cache(*shape)

    def _renew_cache(self, slots: int, capacity: int) -> KVCache:
        """Make another cache, with what runs in it; if there is no memory for it, the old one again."""
        moved, old = dict[int, Tensor](), (slots, capacity)
        if self._cache is not None:
            old = self._cache.slots, self._cache.capacity
            moved = {slot: self._cache.taken_out(slot, seq.length) for slot, seq in self._running.items()}
        self._cache = self._steps = None  # frees its memory before the next is made
        try:
            return self._make_cache(slots, capacity, moved)
        except Exception:
            self._make_cache(*old, moved)
            raise

    def _make_cache(self, slots: int, capacity: int, moved: dict[int, Tensor]) -> KVCache:
        decoder = self._decoder
        cache = KVCache(decoder.config, slots, capacity, decoder.dtype, decoder.device)
        self._cache, self._steps = cache, choose_steps(decoder, cache, self._adapter)
        self._running = {target: self._running[source] for target, source in enumerate(moved)}
        for target, taken in enumerate(moved.values()):
            cache.put_in(target, taken)
        return cache

    @torch.inference_mode()
    def _step(self) -> list[Outcome]:
        """One more token for every running sequence."""
        assert self._steps is not None
        filled = max(sequence.length for sequence in self._running.values()) + 1
        self._close_ranks()
        batch, width = self._steps.shape(max(self._running) + 1, filled)
        block = [[0, 0, 0]] * batch  # an empty slot computes a token that nothing reads
        for slot, sequence in self._running.items():
            block[slot] = [sequence.ids[-1], sequence.length, int(sequence.prompt.tuned)]
            sequence.length += 1
        slots = list(self._running)
        kinds = {sequence.prompt.tuned for sequence in self._running.values()}
        tuned = kinds.pop() if len(kinds) == 1 else None
        logits = self._steps(torch.tensor(block).t().contiguous(), width, tuned)
        return self._choose(logits if slots == list(range(batch)) else logits[slots], slots)

    def _close_ranks(self) -> None:
        """Move the last sequences into the gaps before them if that makes the step smaller."""
        assert self._steps is not None
        assert self._cache is not None
        wanted, _ = self._steps.shape(len(self._running), 1)
        gaps = [slot for slot in range(len(self._running)) if slot not in self._running]
        for gap in gaps:
            last = max(self._running)
            if self._steps.shape(last + 1, 1)[0] <= wanted:
                return
            self._cache.move(last, gap, self._running[last].length)
            self._running[gap] = self._running.pop(last)

    def _choose(self, logits: Tensor, slots: list[int]) -> list[Outcome]:
        sequences = [self._running[slot] for slot in slots]
        samplings = [sequence.prompt.sampling for sequence in sequences]
        chosen = choose(logits, samplings, [sequence.generator for sequence in sequences])
        return [self._take(slot, token) for slot, token in zip(slots, chosen, strict=True)]

    def _take(self, slot: int, token: int | Exception) -> Outcome:
        """Record a token; a finished sequence leaves its slot."""
        sequence = self._running[slot]
        if isinstance(token, Exception):
            del self._running[slot]
            return sequence.prompt, token
        sequence.ids.append(token)
        if token in self._stop_ids or len(sequence.ids) == sequence.final:
            del self._running[slot]
        elif sequence.length == self._long_from:
            # LongRoPE turns all keys of a longer sequence in another way, so they are computed again.
            del self._running[slot]
            self._waiting.appendleft(sequence)
        return sequence.prompt, token


def most_slots(device: torch.device) -> int:
    """How many sequences it is of use to run at once."""
    return _GPU_SLOTS if device.type == "cuda" else _CPU_SLOTS


def cache_bytes(device: torch.device) -> int:
    """The memory that a cache may take."""
    if device.type != "cuda":
        return _CPU_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + cached))
