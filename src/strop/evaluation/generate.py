"""Text generation with a KV cache: prompts are read packed, answers are written a batch at a time."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.evaluation.kv_cache import KVCache
from strop.model.decoder import Decoder
from strop.ops.attention import Packing


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated for one prompt: its ids without the stop token, and whether it stopped by itself."""

    ids: list[int]
    stopped: bool


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[Answer]:
    """Answer every prompt greedily, `batch_size` at a time, longest prompts first; results in the given order."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        written: list[list[int]] = [[] for _ in rows]
        stopped = [False] * len(rows)
        for row, token in stream(decoder, [prompts[i] for i in rows], stop_ids, max_new_tokens):
            if token in stop_ids:
                stopped[row] = True
            else:
                written[row].append(token)
        answers |= {i: Answer(*pair) for i, pair in zip(rows, zip(written, stopped, strict=True), strict=True)}
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> Iterator[tuple[int, int]]:
    """Yield (index of the prompt, next token) as answers grow; a stop token is yielded and ends its answer.

    Args:
        decoder: With or without its LoRA terms enabled.
        prompts: Token ids, at least one each.
        stop_ids: Tokens that end an answer.
        max_new_tokens: At most so many tokens for each prompt.
        temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
        seed: Of the sampling.
        top_p: Sample among the likeliest tokens that have this much probability together.
    """
    decoder.eval()
    device = decoder.device
    generator = torch.Generator().manual_seed(seed)
    lengths = tuple(len(prompt) for prompt in prompts)
    final_B = torch.tensor(lengths, device=device) + max_new_tokens
    cache = KVCache(decoder.config, len(prompts), int(final_B.max()), decoder.dtype, device)

    packing = Packing.of(lengths)
    ids_T = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    positions_T = packing.positions().to(device)
    final_T = final_B.repeat_interleave(torch.tensor(lengths, device=device))
    hidden_TD = decoder.hidden_states(ids_T, positions_T, final_T, cache.reading(packing))
    hidden_BD = hidden_TD[torch.tensor(packing.subtree_ends, device=device) - 1]

    active = list(range(len(prompts)))
    for count in range(1, max_new_tokens + 1):
        next_B = _choose(decoder.logits(hidden_BD), temperature, top_p, generator)
        chosen = next_B.tolist()
        yield from zip(active, chosen, strict=True)
        going = [row for row, token in enumerate(chosen) if token not in stop_ids]
        if not going or count == max_new_tokens:
            return
        if len(going) < len(active):
            rows = torch.tensor(going, device=device)
            cache.keep(rows)
            next_B, final_B = next_B[rows], final_B[rows]
            active = [active[row] for row in going]
        positions_B = cache.lengths_B
        hidden_BD = decoder.hidden_states(next_B, positions_B, final_B, cache.writing())


def _choose(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float()
    # Less its maximum first: a temperature near 0 would make infinities of the logits, and of them no probabilities.
    probabilities = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature).softmax(-1).cpu()
    if top_p < 1.0:
        sorted_BV, order_BV = probabilities.sort(-1, descending=True)
        sorted_BV[sorted_BV.cumsum(-1) - sorted_BV >= top_p] = 0.0  # the likeliest always stays
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order_BV, sorted_BV)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits_BV.device)
