"""Held-out loss and answers of all ranks together: each has a part of the rows, and all know the result."""

from collections.abc import Callable, Sequence

from strop.evaluation.held_out_loss import HeldOutLoss
from strop.evaluation.samples import Generate
from strop.parallel.team import Team


def mean_loss(team: Team, loss_of: Callable[[tuple[int, int]], HeldOutLoss]) -> float:
    """The mean -log p over the learned tokens of all ranks' parts.

    Args:
        team: The ranks.
        loss_of: A rank and the number of ranks -> the loss of its part.
    """
    parts = team.each(lambda: loss_of((team.rank, team.size)))
    return sum(part.total for part in parts) / sum(part.num_loss_tokens for part in parts)


def divided(team: Team, generate: Generate) -> Generate:
    """A `Generate` for which every rank answers each `team.size`-th prompt."""

    def answers(prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], most: int) -> Sequence[Sequence[int]]:
        parts = team.each(lambda: generate(prompts[team.rank :: team.size], stop_ids, most))
        return [parts[i % team.size][i // team.size] for i in range(len(prompts))]

    return answers
