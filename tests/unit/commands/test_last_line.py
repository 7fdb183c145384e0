"""The last line of `strop train`: what was seen, what it took, and from where to where the loss went."""

import json
from pathlib import Path
from typing import Any

import pytest

from run_folders import write_run
from strop import Run
from strop.commands.train import _print_finished

RECIPE = """
model: {model_name_or_path: org/base}
data: {train_file: rows.jsonl}
train: {per_device_train_batch_size: 4, gradient_accumulation_steps: 1}
"""


@pytest.mark.parametrize(
    ("steps", "evals", "manifest", "want"),
    [
        (
            3,
            [(0, 1.5), (3, 0.5)],
            {},
            "done: 3 steps on 12 of 2,844 samples, training time 1m00s, held-out loss 1.5000 (base) -> 0.5000, $0.30",
        ),
        (
            1,
            [(1, 0.5)],
            {"dollars": None},
            "done: 1 step on 4 of 2,844 samples, training time 1m00s, held-out loss 0.5000",
        ),
        (
            711,
            [(0, 0.7956), (400, 0.8022), (711, 0.9)],
            {"adapter_step": 400, "dollars": None},
            "done: 711 steps on all 2,844 samples, the adapter is that of step 400, training time 1m00s, "
            "held-out loss 0.7956 (base) -> 0.8022, worse than the base",
        ),
        (3, [], {"dollars": None}, "done: 3 steps on 12 of 2,844 samples, training time 1m00s"),
    ],
)
def test_the_last_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    evals: list[tuple[int, float]],
    manifest: dict[str, Any],
    want: str,
) -> None:
    folder = write_run(tmp_path / "run", steps=steps, data={"rows": 2844, "samples": 2844}, **manifest)
    (folder / "recipe.yaml").write_text(RECIPE)
    lines = [json.dumps({"kind": "eval", "step": step, "eval_loss": loss}) for step, loss in evals]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    _print_finished(Run(folder))
    assert capsys.readouterr().out.splitlines()[0] == want
