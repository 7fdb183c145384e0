"""Parameters of OpenAI's API, and of servers like it, that strop serve has not: what each refusal says.

A value that asks for nothing is accepted, because clients send defaults along. Every other value is refused in plain
words, with what to do instead. Nothing that could change an answer is ignored.
"""

from dataclasses import dataclass
from typing import Any, Literal

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A parameter that is not supported.

    Attributes:
        instead: What to do instead, as a part of a sentence.
        neutral: Values that ask for nothing. So does null, everywhere.
    """

    instead: str = "leave it out"
    neutral: tuple[Any, ...] = ()

    def refusal(self, name: str) -> str:
        """What is said to a caller who sent another value."""
        return f"{name} is not supported by strop serve: {self.instead}"


def _only(value: object, instead: str, *others: object) -> Unsupported:
    shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return Unsupported(f"{instead}; leave it out or send {shown}".replace("'", '"'), (value, *others))


_SAMPLING = "answers are sampled by temperature and top_p alone"
_ONE = "a request gets one answer; send it several times, with another seed each"
_STORE = "nothing is stored here"
_WEB = "there is no search here; put what was found into the messages"

_BOTH = {
    "n": _only(1, _ONE),
    "presence_penalty": _only(0, _SAMPLING),
    "frequency_penalty": _only(0, _SAMPLING),
    "logit_bias": _only({}, _SAMPLING),
    "logprobs": _only(False, "log-probabilities are not returned; `strop evaluate` measures them on held-out rows"),
    "service_tier": _only("auto", "there is one tier", "default"),
    "store": _only(False, _STORE),
    "metadata": _only({}, _STORE),
    # What other servers take beside OpenAI's.
    "top_k": _only(-1, _SAMPLING, 0),
    "min_p": _only(0, _SAMPLING),
    "typical_p": _only(1, _SAMPLING),
    "repetition_penalty": _only(1, _SAMPLING),
    "length_penalty": _only(1, _SAMPLING),
    "no_repeat_ngram_size": _only(0, _SAMPLING),
    "use_beam_search": _only(False, _SAMPLING),
    "min_tokens": _only(0, "an answer ends where the model ends it, or at max_tokens"),
    "ignore_eos": _only(False, "an answer ends where the model ends it, or at max_tokens"),
    "stop_token_ids": _only([], "an answer ends at training's stop tokens; name further texts in stop"),
    "skip_special_tokens": _only(True, "an answer's text has no special tokens"),
}

_CHAT = {
    "top_logprobs": _only(0, "log-probabilities are not returned"),
    "response_format": _only({"type": "text"}, "the form of an answer is not forced; describe it in the messages"),
    "reasoning_effort": Unsupported(
        "it would change the prompt away from training's; leave it out, or set what the model's own template reads in "
        "chat_template_kwargs"
    ),
    "verbosity": _only("medium", "say in the messages how long the answer should be"),
    "functions": _only([], "write tools, which has replaced it"),
    "function_call": _only("none", "write tool_choice, which has replaced it"),
    "modalities": _only(["text"], "answers are text"),
    "audio": Unsupported("answers are text; leave it out"),
    "prediction": Unsupported("an answer is always computed token by token; leave it out"),
    "web_search_options": Unsupported(f"{_WEB}; leave it out"),
    "chat_template": Unsupported("the prompt is in the template of training; leave it out"),
    "add_generation_prompt": _only(True, "strop answers, and cannot continue an answer"),
    "continue_final_message": _only(False, "strop answers, and cannot continue an answer"),
    "add_special_tokens": _only(False, "the prompt is in the template of training"),
    "echo": _only(False, "an answer does not repeat its prompt"),
}

_COMPLETIONS = {
    "best_of": _only(1, _ONE),
    "echo": _only(False, "the answer does not repeat the prompt, which you have"),
    "suffix": _only("", "the model was trained to continue a text, not to fill a gap in one"),
    "add_special_tokens": _only(True, "a text begins as in training; send token ids to choose them yourself"),
    "response_format": _only({"type": "text"}, "the form of an answer is not forced; describe it in the prompt"),
}

UNSUPPORTED: dict[Endpoint, dict[str, Unsupported]] = {"chat": _BOTH | _CHAT, "completions": _BOTH | _COMPLETIONS}
"""By endpoint and name."""

UNKNOWN = Unsupported()
"""Everything that has no entry here or in `requests`."""


def asks_for_nothing(value: object, parameter: Unsupported) -> bool:
    """Whether a value of an unsupported parameter may be dropped."""
    return value is None or any(_is_same(value, neutral) for neutral in parameter.neutral)


def _is_same(value: object, neutral: object) -> bool:
    """Equality in which true is not 1: a value of the wrong type is a mistake of the caller's."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
