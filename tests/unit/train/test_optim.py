import pytest
import torch
import transformers

from strop.recipe import TrainSection
from strop.train.optim import FlatAdamW, learning_rate

SCHEDULES = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "constant_with_warmup": lambda o, w, n: transformers.get_constant_schedule_with_warmup(o, w),
    "constant": lambda o, w, n: transformers.get_constant_schedule(o),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 7}, {"warmup_ratio": 0.13}])
def test_schedules_equal_transformers(kind: str, warmup: dict[str, float]) -> None:
    section = TrainSection(learning_rate=3e-4, lr_scheduler_type=kind, **warmup)
    steps = 50
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    arguments = transformers.TrainingArguments("unused", use_cpu=True, warmup_steps=next(iter(warmup.values()), 0))
    scheduler = SCHEDULES[kind](optimizer, arguments.get_warmup_steps(steps), steps)
    for step in range(steps):
        assert learning_rate(step, section, steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-18)
        optimizer.step()
        scheduler.step()


class FlatAdapter:
    """The part of an adapter that the optimizer sees."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.flat = torch.randn(1000, dtype=torch.float64, generator=generator)
        self.flat_grad = torch.randn(1000, dtype=torch.float64, generator=generator)


def optimizer_of(adapter: FlatAdapter) -> FlatAdamW:
    return FlatAdamW(adapter, TrainSection())  # type: ignore[arg-type]


SOUND = torch.tensor(1.0)


@pytest.mark.parametrize("limit", [0.0, 0.1, 1.0, 100.0])
def test_an_update_clips_as_torch_does(limit: float) -> None:
    adapter = FlatAdapter()
    parameter = torch.nn.Parameter(adapter.flat.clone())
    parameter.grad = adapter.flat_grad.clone()
    section = TrainSection()
    theirs = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=section.weight_decay, eps=section.adam_epsilon)
    norm = torch.nn.utils.clip_grad_norm_([parameter], limit or float("inf"))
    theirs.step()
    assert optimizer_of(adapter).update(SOUND, 1e-2, limit) == pytest.approx(norm.item(), rel=1e-14)
    assert torch.allclose(adapter.flat, parameter.data, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_this_update_and_all_later_ones(what: str) -> None:
    adapter = FlatAdapter()
    optimizer = optimizer_of(adapter)
    optimizer.update(SOUND, 1e-2, 1.0)
    before = [adapter.flat.clone(), *optimizer.state().values()]
    sound = adapter.flat_grad.clone()
    if what == "gradient":
        adapter.flat_grad[3] = float("nan")
    optimizer.update(torch.tensor(float("inf")) if what == "loss" else SOUND, 1e-2, 1.0)
    adapter.flat_grad.copy_(sound)
    optimizer.update(SOUND, 1e-2, 1.0)
    after = [adapter.flat, *optimizer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
