import pytest
import torch
import transformers

from strop.ops.adamw_8bit import AdamWSettings, Moments, adamw_8bit
from strop.recipe import TrainSection
from strop.training.optim import FlatOptimizer, choose_optimizer, learning_rate

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
    """The part of an adapter that the optimizer uses."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.flat = torch.randn(1000, dtype=torch.float64, generator=generator)
        self.flat_grad = torch.randn(1000, dtype=torch.float64, generator=generator)


OPTIMIZERS = ["adamw_torch", "adamw_8bit"]
SOUND = torch.tensor(1.0)


RECIPES: list[dict[str, float]] = [
    {"adam_beta1": 0.8},
    {"adam_beta2": 0.95},
    {"adam_epsilon": 1e-2},
    {"weight_decay": 0.3},
    {"adam_beta1": 0.7, "adam_beta2": 0.98, "adam_epsilon": 1e-4, "weight_decay": 0.05},
]


@pytest.mark.parametrize("settings", RECIPES, ids=lambda settings: " ".join(settings))
def test_the_recipes_numbers_are_adamws(settings: dict[str, float]) -> None:
    section, adapter = TrainSection(**settings), FlatAdapter()  # type: ignore[arg-type]
    parameter = torch.nn.Parameter(adapter.flat.clone())
    betas = (settings.get("adam_beta1", 0.9), settings.get("adam_beta2", 0.999))
    eps, decay = settings.get("adam_epsilon", 1e-8), settings.get("weight_decay", 0.0)
    theirs = torch.optim.AdamW([parameter], lr=1.0, betas=betas, eps=eps, weight_decay=decay, foreach=False)
    optimizer = choose_optimizer(adapter, section)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for rate in (1e-2, 3e-3, 1e-3):
        parameter.grad = torch.randn(1000, dtype=torch.float64, generator=generator)
        theirs.param_groups[0]["lr"] = rate
        optimizer.update(parameter.grad.clone(), SOUND, rate, 0.0)
        theirs.step()
    assert torch.allclose(adapter.flat, parameter.data, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("settings", RECIPES, ids=lambda settings: " ".join(settings))
def test_the_recipes_numbers_are_those_of_8_bit_adamw(settings: dict[str, float]) -> None:
    section, adapter = TrainSection(optim="adamw_8bit", **settings), FlatAdapter()  # type: ignore[arg-type]
    adapter.flat = adapter.flat.float()
    wanted, moments, sound = adapter.flat.clone(), Moments.zeros(adapter.flat), torch.tensor(False)
    numbers = AdamWSettings(
        beta1=settings.get("adam_beta1", 0.9),
        beta2=settings.get("adam_beta2", 0.999),
        eps=settings.get("adam_epsilon", 1e-8),
        weight_decay=settings.get("weight_decay", 0.0),
    )
    optimizer = choose_optimizer(adapter, section)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for rate in (1e-2, 3e-3, 1e-3):
        grad = torch.randn(1000, generator=generator)
        optimizer.update(grad.clone(), SOUND, rate, 0.0)
        adamw_8bit(wanted, grad, moments, numbers, rate, sound)
    assert torch.equal(adapter.flat, wanted)


def optimizer_of(adapter: FlatAdapter, optim: str = "adamw_torch") -> FlatOptimizer:
    return choose_optimizer(adapter, TrainSection(optim=optim))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0.0, 0.1, 1.0, 100.0])
def test_an_update_clips_as_torch_does(limit: float) -> None:
    adapter = FlatAdapter()
    parameter = torch.nn.Parameter(adapter.flat.clone())
    parameter.grad = adapter.flat_grad.clone()
    section = TrainSection()
    theirs = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=section.weight_decay, eps=section.adam_epsilon)
    norm = torch.nn.utils.clip_grad_norm_([parameter], limit or float("inf"))
    theirs.step()
    assert optimizer_of(adapter).update(adapter.flat_grad, SOUND, 1e-2, limit) == pytest.approx(norm.item(), rel=1e-14)
    assert torch.allclose(adapter.flat, parameter.data, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_this_update_and_all_later_ones(what: str, optim: str) -> None:
    adapter = FlatAdapter()
    optimizer = optimizer_of(adapter, optim)
    optimizer.update(adapter.flat_grad, SOUND, 1e-2, 1.0)
    before = [adapter.flat.clone(), *optimizer.state().values()]
    sound = adapter.flat_grad.clone()
    if what == "gradient":
        adapter.flat_grad[3] = float("nan")
    optimizer.update(adapter.flat_grad, torch.tensor(float("inf")) if what == "loss" else SOUND, 1e-2, 1.0)
    adapter.flat_grad.copy_(sound)
    optimizer.update(adapter.flat_grad, SOUND, 1e-2, 1.0)
    after = [adapter.flat, *optimizer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_restored_optimizer_continues_bitwise(optim: str) -> None:
    adapters = [FlatAdapter() for _ in range(3)]
    optimizers = [optimizer_of(adapter, optim) for adapter in adapters]
    for optimizer, adapter in zip(optimizers, adapters, strict=True):
        optimizer.update(adapter.flat_grad, SOUND, 1e-2, 1.0)
    stored = {name: tensor.clone() for name, tensor in optimizers[1].state().items()}
    optimizers[1:] = [optimizer_of(adapter, optim) for adapter in adapters[1:]]
    optimizers[1].load_state(stored)  # the third starts from scratch
    for optimizer, adapter in zip(optimizers, adapters, strict=True):
        adapter.flat_grad.copy_(adapter.flat.flip(0))
        optimizer.update(adapter.flat_grad, SOUND, 1e-2, 1.0)
    assert torch.equal(adapters[0].flat, adapters[1].flat)
    assert not torch.equal(adapters[0].flat, adapters[2].flat)
    for name, tensor in optimizers[0].state().items():
        assert torch.equal(tensor, optimizers[1].state()[name])


def test_moments_in_8_bits_take_a_quarter() -> None:
    held = {}
    for optim in OPTIMIZERS:
        adapter = FlatAdapter()
        adapter.flat, adapter.flat_grad = adapter.flat.float(), adapter.flat_grad.float()
        optimizer = optimizer_of(adapter, optim)
        optimizer.update(adapter.flat_grad, SOUND, 1e-2, 1.0)
        held[optim] = sum(x.numel() * x.element_size() for x in optimizer.state().values())
    assert held["adamw_8bit"] < 0.26 * held["adamw_torch"]
