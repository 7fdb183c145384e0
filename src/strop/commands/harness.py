"""A run as a model of lm-evaluation-harness; importing this module registers it there.

Likelihoods are computed in packed microbatches in which a context that several continuations share is read once;
answers by strop's generator.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from strop.commands.console import aside
from strop.commands.load import load_tuned
from strop.commands.run import Run
from strop.data.examples import Conversation, Message, Role
from strop.data.store import Sample
from strop.errors import RecipeError
from strop.evaluation.generate import generate
from strop.evaluation.held_out_loss import token_losses
from strop.training.budget import wanted_tokens

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise RecipeError("lm-evaluation-harness is not installed: pip install 'strop[lm-eval]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance

MODEL = "strop"
"""What lm-eval calls it."""

_DEFAULT_NEW_TOKENS = 256


@register_model(MODEL)
class StropLM(TemplateLM):
    """A run's model, tuned or as it was.

    Args:
        run: The run folder.
        tuned: False asks the base model.
        others: What lm-eval passes to every model; strop chooses its device and sizes by itself.

    Raises:
        RecipeError: The run is not finished.
    """

    def __init__(self, run: str, tuned: bool = True, **others: Any) -> None:
        super().__init__()
        model = load_tuned(Run(Path(run)), aside)
        model.adapter.enable(tuned)
        self._decoder, self._template = model.adapter.decoder, model.template
        self.tokenizer = model.template.tokenizer
        self._max_length = self._decoder.config.max_positions

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without context comes after."""
        return self.eot_token_id if self._template.bos_id is None else self._template.bos_id

    @property
    def tokenizer_name(self) -> str:
        """A digest of all that decides ids."""
        return self._template.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """Token ids, begun as in training with the model's BOS unless `add_special_tokens` is False."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        bos = self._template.bos_id
        return ids if add_special_tokens is False or bos is None or ids[:1] == [bos] else [bos, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as text, in the template that the run was trained in and with its system message.

        Raises:
            RecipeError: That is no chat template.
        """
        template = self._template
        if template.chat is None:
            raise RecipeError(f"the run was trained in the {template.name} template, not in a chat template")
        asked = Conversation(tuple(Message(cast("Role", turn["role"]), turn["content"]) for turn in chat_history))
        chat = template.as_chat(asked)
        return template.chat.render([chat], True)[0] if add_generation_prompt else template.chat.begun(chat)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **others: Any
    ) -> list[tuple[float, bool]]:
        """Log p of each continuation, and whether greedy decoding would have written it."""
        samples = [self._sample(context, continuation) for _, context, continuation in requests]
        if not samples:
            return []
        longest = max(len(sample.input_ids) for sample in samples)
        sums, missed_N = token_losses(self._decoder, samples, wanted_tokens(self._decoder.device, longest))
        found = [(-nll, not missed) for nll, missed in zip(sums.nll_N.tolist(), missed_N.tolist(), strict=True)]
        for (texts, *_), likelihood in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, likelihood)
        return found

    def _sample(self, context: list[int], continuation: list[int]) -> Sample:
        """Continuation after context, the context's beginning cut where both are too long for the model."""
        ids = [*context, *continuation][-self._max_length :]
        return Sample(np.array(ids, np.int32), np.arange(len(ids)) >= len(ids) - len(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log p of whole texts, each token after as much before it as the model's length allows."""
        owners, windows = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self._max_length - 1, 1):
                owners.append(index)
                windows.append((None, *make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        for index, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, cut before the first of each request's `until`.

        Raises:
            RecipeError: A task asks for sampling.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            settings = request.args[1]
            if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
                raise RecipeError(
                    "the task asks for sampling, strop answers lm-eval greedily: --gen_kwargs do_sample=False"
                )
            by_length[int(settings.get("max_gen_toks", _DEFAULT_NEW_TOKENS))].append(index)
        texts = [""] * len(requests)
        for max_new_tokens, indices in by_length.items():
            room = max(1, self._max_length - max_new_tokens)
            prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in indices]
            answers = generate(self._decoder, prompts, self._template.stop_ids, max_new_tokens)
            for i, answer in zip(indices, answers, strict=True):
                texts[i] = _before(
                    self.tokenizer.decode(answer.ids, skip_special_tokens=True), requests[i].args[1].get("until")
                )
                self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts


def _before(text: str, until: str | list[str] | None) -> str:
    """The text up to the first of the strings that end it."""
    for end in [until] if isinstance(until, str) else until or []:
        if end:
            text = text.partition(end)[0]
    return text
