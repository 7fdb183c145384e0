"""A pool of sequences without a model: what the endpoint's tests answer with."""

import time

from strop.evaluation.pool import Prompt


class Script:
    """Stands for the pool: each answer is the tokens that it was given, or token 65 for ever, slowly."""

    slots = 4
    pause = 0.0
    decoder = None

    def __init__(self) -> None:
        self.tokens: list[int] | None = None
        self.prompts: list[Prompt] = []
        self.running: dict[Prompt, list[int]] = {}
        self.waiting: list[Prompt] = []
        self.together = self.yielded = 0
        self.stop_ids: frozenset[int] = frozenset()

    def pool(self, decoder: object, stop_ids: frozenset[int], adapter: object, **others: object) -> "Script":
        self.stop_ids = stop_ids
        return self

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, prompt: Prompt) -> None:
        self.waiting.append(prompt)

    def remove(self, prompt: Prompt) -> None:
        self.running.pop(prompt, None)
        self.waiting = [other for other in self.waiting if other is not prompt]

    def advance(self) -> list[tuple[Prompt, int | Exception]]:
        while self.waiting and len(self.running) < self.slots:
            self.prompts.append(self.waiting.pop(0))
            self.running[self.prompts[-1]] = []
        self.together = max(self.together, len(self.running))
        time.sleep(self.pause if self.tokens else 0.002)
        outcomes = [(prompt, self._next(given)) for prompt, given in self.running.items()]
        for prompt, outcome in outcomes:
            is_last = len(self.running[prompt]) == prompt.max_new_tokens
            if is_last or isinstance(outcome, Exception) or outcome in self.stop_ids:
                del self.running[prompt]
        return outcomes

    def _next(self, given: list[int]) -> int | Exception:
        if self.tokens == [-1]:
            return RuntimeError("the device is gone: /secret/path")
        self.yielded += 1
        given.append(65 if self.tokens is None else self.tokens[len(given)])
        return given[-1]
