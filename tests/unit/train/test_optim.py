import pytest
import torch
import transformers

from strop.recipe import TrainSection
from strop.train.optim import clip_scale, learning_rate

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


@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0])
def test_clipping_equals_torch(limit: float) -> None:
    gradient = torch.randn(1000, dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], limit)
    scale = clip_scale(gradient.norm(), limit)
    assert scale is not None
    assert torch.allclose(parameter.grad, gradient * scale, rtol=1e-14, atol=0)


def test_no_clipping() -> None:
    assert clip_scale(torch.tensor(5.0), 0.0) is None
