"""A line for each GPU: what is counted of the user's rows, what fits, what it costs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strop.commands.plan import plan_notes, plan_table
from strop.forecast.estimate import START_SECONDS, PlannedRun, measured, plan_of, scaled
from strop.forecast.prediction import Outcome, sentence
from strop.forecast.probe import Probe
from strop.forecast.published import PHI3_MINI
from strop.forecast.workload import count_workload, load_of
from strop.gpus import GPUS
from strop.microbatch.pack import pack
from strop.modal_runs.prices import STORED
from strop.model.config import read_config
from strop.recipe import Recipe
from strop.run.manifest import Compared, Estimate
from training_doubles import Rows

CONFIG = read_config(PHI3_MINI)


def recipe(**sections: Any) -> Recipe:
    model = {"model_name_or_path": "m"} | sections.pop("model", {})
    return Recipe.model_validate({"model": model, "data": {"train_file": "t", "validation_file": "v"}, **sections})


def job(header: int = 100, **sections: Any) -> PlannedRun:
    return PlannedRun(recipe(**sections), CONFIG, Rows(header), Rows(header))  # type: ignore[arg-type]


def test_a_microbatch_is_counted_as_attention_sees_it() -> None:
    rows = Rows(header=30)
    (batch,) = pack([rows[i] for i in range(4)], range(4), 1000)
    windows = (None, 8, 8)
    load = load_of(batch, windows)
    seen = sum(range(1, 31)) + sum(sum(range(31, 1 + rows.lengths[i])) for i in range(4))
    near = sum(min(n, 8) for n in range(1, 31)) + sum(8 * (rows.lengths[i] - 30) for i in range(4))
    assert load.pairs == seen + 2 * near
    assert load.tokens == 30 + sum(rows.lengths[:4] - 30)
    assert load.sample_tokens == sum(rows.lengths[:4])


@pytest.mark.parametrize(
    ("train", "evaluations", "saves"),
    [
        ({"max_steps": 10, "save_steps": 0}, 2, 1),
        ({"max_steps": 10, "save_steps": 5, "eval_steps": 5, "eval_on_start": False}, 2, 2),
        ({"max_steps": 11, "save_steps": 5, "eval_steps": 5, "eval_on_start": True}, 4, 3),
    ],
)
def test_evaluations_and_checkpoints_are_those_of_the_loop(train: dict[str, Any], evaluations: int, saves: int) -> None:
    counted = count_workload(recipe(train=train), CONFIG, Rows(), Rows(), 1000)  # type: ignore[arg-type]
    assert (counted.evaluations, counted.saves) == (evaluations, saves)


def test_sharing_is_that_of_the_packed_steps() -> None:
    assert job().workload(10_000).sharing > 4
    assert job(lora={"lora_dropout": 0.1}).workload(10_000).sharing == 1.0


def test_each_gpu_gets_what_it_can_compute() -> None:
    lines = {gpu: scaled(job(), gpu, STORED) for gpu in GPUS}
    assert {gpu: line.precision for gpu, line in lines.items()} == {
        "T4": "float32", "L4": "bfloat16", "A10": "bfloat16", "L40S": "bfloat16", "A100-40GB": "bfloat16",
        "A100-80GB": "bfloat16", "RTX-PRO-6000": "float8", "H100": "float8", "H200": "float8", "B200": "float8",
    }  # fmt: skip
    assert "needs 1" in (lines["T4"].problem or "")  # 15 GiB of weights in float32
    assert lines["A100-80GB"].layers == "plain"
    assert lines["H200"].layers == "fused"
    widths = [lines[gpu].range[1] / lines[gpu].range[0] for gpu in ("H200", "H100", "B200", "L4")]
    assert widths == sorted(widths)
    assert all(line.source == "scaled" for line in lines.values())


def test_a_precision_that_a_gpu_lacks_is_said() -> None:
    line = scaled(job(model={"precision": "float8"}), "A100-80GB", STORED)
    assert "has no float8" in (line.problem or "")
    assert line.dollars is None


def test_what_a_line_costs() -> None:
    one, two = (scaled(job(train={"max_steps": 1000, "save_steps": 0}), gpu, STORED) for gpu in ("H100", "H100:2"))
    assert one.dollars == pytest.approx(one.seconds * (0.001097 + 2 * 0.0000131 + 16 * 0.00000222))
    assert two.dollars / two.seconds - one.dollars / one.seconds == pytest.approx(0.001097)  # type: ignore[operator]
    assert one.seconds > START_SECONDS + one.training_seconds
    twice = scaled(job(train={"max_steps": 2000, "save_steps": 0}), "H100", STORED)
    assert twice.training_seconds == pytest.approx(2 * one.training_seconds, abs=3)  # one checkpoint, not two


def test_several_gpus_divide_each_step() -> None:
    """A step of eight samples is too small for two: it takes no less time."""
    small = [scaled(job(train={"max_steps": 1000}), f"H200:{n}", STORED) for n in (1, 2)]
    assert small[1].samples_per_second < 1.1 * small[0].samples_per_second
    batch = {"max_steps": 10, "per_device_train_batch_size": 128, "max_tokens_per_microbatch": 600}
    large = job(train=batch, lora={"lora_dropout": 0.1})  # nothing is shared
    one, two, four = (scaled(large, f"H200:{n}", STORED) for n in (1, 2, 4))
    assert 1.5 < two.samples_per_second / one.samples_per_second < 2
    assert 2 < four.samples_per_second / one.samples_per_second < 4
    assert one.training_seconds > two.training_seconds > four.training_seconds
    assert two.dollars is not None
    assert two.dollars / two.seconds > 1.9 * one.dollars / one.seconds  # type: ignore[operator]


FOUND = Probe("NVIDIA H200", "float8", "fused", 139.8, 50.0, 4000, 0.5, 1e-5, 4)


def test_a_probe_takes_the_place_of_its_gpu_and_scales_no_other() -> None:
    work = job(train={"max_steps": 100}, modal={"gpu": ["H200:2", "H100"]})
    here = measured(work, "H200", FOUND, STORED)
    assert here.samples_per_second == pytest.approx(8 / 0.5)
    without, with_probe = plan_of(work, STORED, None), plan_of(work, STORED, here)
    assert with_probe.own == without.own
    assert without.own.gpu == "H200:2"
    assert list(with_probe.lines) == [*without.lines, here], "two are not what was measured"
    alone = job(train={"max_steps": 100}, modal={"gpu": ["H200"]})
    assert plan_of(alone, STORED, here).own is here
    others = [[line for line in plan_of(alone, STORED, each).lines if line.gpu != "H200"] for each in (None, here)]
    assert others[0] == others[1]
    cpu = measured(work, "CPU", replace(FOUND, device="CPU", memory_gib=0.0), STORED)
    beside = plan_of(work, STORED, cpu)
    assert [line.gpu for line in beside.lines] == [*list(GPUS)[:8], "H200:2", "B200", "CPU"]
    assert cpu.dollars is None


def test_the_table_marks_the_recipe_s_own_and_fits_80_columns() -> None:
    from rich.console import Console

    found = plan_of(job(train={"max_steps": 2500}), STORED, None)
    console = Console(width=80, force_terminal=False)
    with console.capture() as shown:
        console.print(plan_table(found))
    lines = shown.get().splitlines()
    assert len(lines) == 1 + len(GPUS)
    assert [line.split()[0] for line in lines if "*" in line] == ["H200*"]
    notes = "\n".join(plan_notes(found))
    for words in ("2026-09", "scaled", "H200", "T4: needs", "2,500 steps"):
        assert words in notes


def test_a_prediction_is_kept_with_four_decimals() -> None:
    line = scaled(job(), "H200", STORED)
    again = line.rounded()
    assert again != line
    assert again.seconds == pytest.approx(line.seconds, abs=5e-5)
    assert (again.gpu, again.max_tokens, again.range) == (line.gpu, line.max_tokens, line.range)


def test_how_wrong_the_plan_was() -> None:
    line = Estimate(
        "H200", "scaled", peak_gib=50.0, tokens_per_second=40_000.0, training_seconds=100.0, seconds=160.0, dollars=0.2
    )
    whole = Outcome(80.0, 50_000.0, 40.0, 0.16, (10, 10), 1).beside(line)
    assert whole["training_seconds"] == Compared(100.0, 80.0, 0.25)
    assert whole["tokens_per_second"].off == -0.2
    assert sentence(line, whole, 2) == (
        "plan (scaled) (2 attempts): training took 1m20s, predicted 1m40s (+25%); "
        "tok/s 50,000, predicted 40,000 (-20%); GiB 40.0, predicted 50.0 (+25%); $ 0.16, predicted 0.20 (+25%)"
    )
    half = Outcome(40.0, 50_000.0, None, None, (5, 10), 1).beside(line)
    assert half["training_seconds"].predicted == 50.0
    assert set(half) == {"training_seconds", "tokens_per_second"}


def test_a_run_of_seconds_gives_no_share_of_its_plan() -> None:
    line = Estimate("H200", "scaled", tokens_per_second=40_000.0, training_seconds=37.0)
    said = sentence(line, Outcome(4.0, 5_000.0, None, None, (10, 10), 1).beside(line), 1)
    assert said == (
        "plan (scaled): training took 4s, predicted 37s; tok/s 5,000, predicted 40,000; "
        "a run of seconds says little of a plan"
    )


def test_lengths_are_numbers_that_json_knows() -> None:
    assert isinstance(job().longest_sample, int)
    assert not isinstance(job().longest_sample, np.integer)
