"""What rank 0 and the others say to each other, with teams that only pretend to be several."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from strop.errors import Interrupted, NumericsError, RankLost
from strop.evaluation.held_out_loss import HeldOutLoss
from strop.evaluation.together import divided, mean_loss
from strop.parallel.meeting import Stopped
from strop.parallel.team import ALONE, Team
from strop.recipe import TrainSection
from strop.training.engine import StropEngine, _refuse_differences
from strop.training.loss import NonFiniteError
from strop.training.ranks import LeadingEngine, obey, told
from tiny_models import write_checkpoint
from training_doubles import Rows, adapter_with_b

T = TypeVar("T")


class Pretended(Team):
    """Two ranks in one: `each` computes for both."""

    size = 2

    def __init__(self) -> None:
        self.rank, self.said = 0, []

    def each(self, compute: Callable[[], T]) -> list[T]:
        found = []
        for rank in range(self.size):
            self.rank = rank
            found.append(compute())
        self.rank = 0
        return found

    def tell(self, name: str, *arguments: Any) -> None:
        self.said.append((name, *arguments))


class Told(Team):
    """Another rank, that hears what it is given."""

    def __init__(self, *words: tuple[Any, ...]) -> None:
        self._words = iter(words)

    def hear(self) -> tuple[str, Sequence[Any]]:
        name, *arguments = next(self._words)
        return name, arguments


class Launched:
    """A step in flight."""

    is_done = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def result(self) -> str:
        if self.error is not None:
            raise self.error
        return "result"


class Engine:
    """Keeps what it was asked for."""

    device, num_trainable, save_seconds = "cpu", 3, 1.0

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.error = [], error

    def launch(self, step: int, rate: float, check_stop: Callable[[], None]) -> Launched:
        self.asked.append(("launch", step, rate))
        check_stop()
        return Launched(self.error)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self.asked.append((name, *arguments))


def test_the_others_are_told_of_each_call_before_rank_0_makes_it() -> None:
    team, own = Pretended(), Engine()
    engine = LeadingEngine(own, team)  # type: ignore[arg-type]
    assert engine.launch(3, 0.1, lambda: None).result() == "result"
    engine.make_room(4)
    engine.state()
    engine.load_state(2, {"lora": torch.ones(1)}, {"a": 1})
    engine.weights()
    names = [word[0] for word in team.said]
    assert names == ["launch", "finish", "make_room", "state", "load_state"]
    assert team.said[0] == ("launch", 3, 0.1)
    assert [call[0] for call in own.asked] == ["launch", "make_room", "state", "load_state", "weights"]
    assert told(team, "evaluate", lambda part: part + 1)(1) == 2
    assert team.said[-1] == ("evaluate", 1)


def test_another_rank_does_what_it_is_told_until_the_end() -> None:
    engine, evaluated = Engine(), []
    words = [("load_state", 2, {}, {}), ("launch", 2, 0.1), ("finish",), ("evaluate",), ("state",), ("end", None)]
    ended = obey(Told(*words), engine, lambda: None, evaluate=lambda: evaluated.append(1))  # type: ignore[arg-type]
    assert ended is None
    assert evaluated == [1]
    assert [call[0] for call in engine.asked] == ["load_state", "launch", "state"]


def test_what_stops_one_rank_is_for_rank_0_to_decide() -> None:
    def stop() -> None:
        raise Interrupted("stopped by SIGTERM")

    ended = obey(Told(("launch", 0, 0.1), ("state",), ("end", ("stopped", 75))), Engine(), stop)  # type: ignore[arg-type]
    assert isinstance(ended, Stopped)
    assert (str(ended), ended.exit_code) == ("stopped", 75)
    out = Engine(torch.OutOfMemoryError("no memory"))
    assert obey(Told(("launch", 0, 0.1), ("finish",), ("end", None)), out, lambda: None) is None  # type: ignore[arg-type]


def test_after_a_loss_that_is_not_finite_no_step_is_in_flight() -> None:
    words = [("launch", 0, 0.1), ("launch", 1, 0.1), ("finish",), ("finish",)]
    engine = Engine(NonFiniteError("the loss is nan", (1,)))
    with pytest.raises(IndexError, match="empty deque"):
        obey(Told(*words), engine, lambda: None)  # type: ignore[arg-type]


def test_a_lost_rank_ends_the_others() -> None:
    def lost() -> None:
        raise RankLost("a rank has ended")

    with pytest.raises(RankLost):
        obey(Told(("launch", 0, 0.1), ("end", None)), Engine(), lost)  # type: ignore[arg-type]


def test_losses_of_all_ranks_are_weighted_by_their_tokens() -> None:
    parts = {(0, 2): HeldOutLoss(3.0, 3), (1, 2): HeldOutLoss(1.0, 1)}
    assert mean_loss(Pretended(), parts.__getitem__) == 1.0
    assert mean_loss(Pretended(), {(0, 2): HeldOutLoss(3.0, 1), (1, 2): HeldOutLoss(0.0, 0)}.__getitem__) == 3.0
    assert mean_loss(ALONE, {(0, 1): HeldOutLoss(3.0, 2)}.__getitem__) == 1.5


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_answers_come_in_the_order_of_their_prompts(count: int) -> None:
    prompts = [[i, i] for i in range(count)]
    answers = divided(Pretended(), lambda prompts, stop_ids, most: [[10 * a] for a, _ in prompts])
    assert answers(prompts, frozenset(), 5) == [[10 * i] for i in range(count)]


def test_the_parts_of_a_step_are_its_whole(tmp_path: Path) -> None:
    """Each rank's loss is that of its own samples, divided by the learned tokens of all."""

    class One(Team):
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = rank, size

    folder, section = write_checkpoint(tmp_path, "qwen3"), TrainSection(per_device_train_batch_size=8, max_steps=2)
    rows: Any = Rows()

    def part(rank: int, size: int) -> Any:
        engine = StropEngine(adapter_with_b(folder), rows, section, team=One(rank, size))
        return engine.launch(0, 1e-3, lambda: None).result()

    parts, whole = [part(rank, 3) for rank in range(3)], part(0, 1)
    assert sum(each.loss for each in parts) == pytest.approx(whole.loss, rel=1e-12)
    assert sum(each.num_samples for each in parts) == whole.num_samples == 16
    assert len({each.loss for each in parts}) == 3


def test_a_rank_with_other_weights_is_named() -> None:
    _refuse_differences(["a", "a", "a"])
    with pytest.raises(NumericsError, match="rank 2 has other weights") as caught:
        _refuse_differences(["a", "a", "b", "a"])
    assert caught.value.exit_code == 5
    with pytest.raises(NumericsError, match="ranks 0, 3 have"):
        _refuse_differences(["b", "a", "a", "c"])
