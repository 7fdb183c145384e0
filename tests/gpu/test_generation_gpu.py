"""Generation on a GPU: captured steps are the eager ones, and in float32 the answers are the CPU's."""

from pathlib import Path

import pytest
import torch

from strop.evaluation import decode_step, generate, pool
from strop.model.pretrained.weights import load_decoder
from tiny_models import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [[3 + (i * j) % 120 for j in range(1, 4 + (7 * i) % 40)] for i in range(1, 24)]


class PaddedEagerSteps(decode_step.EagerSteps):
    """The captured steps' shapes without graphs."""

    shape = decode_step.CapturedSteps.shape


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    made = []
    capture = decode_step.CapturedSteps._capture

    def counting(self, block, width, tuned):
        made.append((block.shape[1], width))
        return capture(self, block, width, tuned)

    monkeypatch.setattr(decode_step.CapturedSteps, "_capture", counting)
    return made


@pytest.mark.parametrize("family", ["llama3", "phi3-window", "qwen3"])
def test_answers_are_the_cpus(family: str, tmp_path: Path, captures: list[tuple[int, int]]) -> None:
    folder = write_checkpoint(tmp_path, family)
    want = generate.generate(load_decoder(folder, torch.float64), PROMPTS, {2, 7}, 40)
    got = generate.generate(load_decoder(folder, torch.float32, torch.device("cuda")), PROMPTS, {2, 7}, 40, slots=6)
    same = sum(a == b for a, b in zip(got, want, strict=True))
    assert same >= len(want) - 1, "one near tie is possible, more is a fault"
    assert captures


@pytest.mark.parametrize("nf4", [False, True])
def test_captured_steps_are_the_eager_ones_bit_for_bit(
    nf4: bool, tmp_path: Path, captures: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    folder = write_checkpoint(tmp_path, "llama3", gain=1.0, dtype=torch.bfloat16, **shape)
    decoder = load_decoder(folder, torch.bfloat16, torch.device("cuda"), False, nf4)
    got = generate.generate(decoder, PROMPTS, {2, 7}, 40, slots=6)
    assert captures
    monkeypatch.setattr(pool, "choose_steps", PaddedEagerSteps)
    assert generate.generate(decoder, PROMPTS, {2, 7}, 40, slots=6) == got
