"""The demo's model, trained for a moment, as a GGUF file: llama.cpp answers as strop does."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from one_core import one_core
from tiny_runs import environment, strop
from waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gguf")]  # what they share takes 25 seconds to make
OVERRIDES = (
    "train.max_steps=3",
    "train.eval_on_start=false",
    "train.eval_steps=0",
    "train.sample_rows=0",
    "data.max_train_samples=100",
    "data.max_eval_samples=2",
)


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct after three steps: enough to answer with numbers, and to say them less clearly."""
    folder = tmp_path_factory.mktemp("gguf")
    done = strop("train", "demo", *OVERRIDES, f"train.output_dir={folder / 'run'}", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


def export(folder: Path, quantisation: str) -> dict[str, Any]:
    done = strop("export", folder / "run", "--to", "gguf", "--quantise", quantisation, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    parity: dict[str, Any] = json.loads((folder / "run" / f"gguf-{quantisation}" / "parity.json").read_text())
    return parity


def test_llama_cpp_answers_as_strop_does(workshop: Path) -> None:
    parity = export(workshop, "f16")
    assert parity["consumer"].startswith("xllamacpp")
    assert parity["same_prompts"] == parity["num_prompts"] > 6 == parity["num_answers"]
    # All six here; another processor's rounding may turn one where strop's own choice was a tie.
    assert parity["same_answers"] >= 5
    assert parity["widest_parting"] < 0.02
    assert parity["num_positions"] > 60
    assert parity["distance"]["kl"] < 1e-4
    assert parity["distance"]["top1"] == 1.0
    folder = workshop / "run" / "gguf-f16"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "README.md", "parity.json", "run-f16.gguf"]


def test_eight_bits_are_a_quarter_of_float32_and_as_good(workshop: Path) -> None:
    parity = export(workshop, "q8_0")
    assert parity["distance"]["kl"] < 4e-3
    reader = gguf.GGUFReader(workshop / "run" / "gguf-q8_0" / "run-q8_0.gguf")
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    assert types == {"F32", "Q8_0"}
    size = sum(int(tensor.n_bytes) for tensor in reader.tensors) / sum(
        int(tensor.n_elements) for tensor in reader.tensors
    )
    assert 1.06 < size < 1.07  # 34 bytes for 32 weights
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert reader.fields["llama.context_length"].contents() == 8192


def test_a_file_of_another_adapter_is_refused(workshop: Path) -> None:
    """The gate's negative control: the file says what the base says."""
    spoilt = workshop / "spoilt"
    shutil.copytree(workshop / "run", spoilt, ignore=shutil.ignore_patterns("gguf-*"))
    program = (
        "import sys\n"
        "from strop.exporting import merge\n"
        "plain = merge.MergedModel.__getitem__\n"
        "merge.MergedModel.__getitem__ = lambda self, name: (self._factors.clear(), plain(self, name))[1]\n"
        "from strop.cli import main\n"
        f"sys.argv = ['strop', 'export', {str(spoilt)!r}, '--to', 'gguf', '--quantise', 'f16']\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(workshop / "cache"), timeout=PATIENCE, check=False
    )
    assert done.returncode == 9, done.stderr
    assert "KL divergence" in done.stderr
    assert not (spoilt / "gguf-f16").exists()
    assert not list(spoilt.glob(".*gguf*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "merged", "--quantise", "f16"), "--quantise is for --to gguf"),
        (("--to", "gguf", "--layout", "split"), "--layout and --base are for --to adapter"),
        (("--to", "gguf", "--quantise", "q3"), "q3"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], said: str, workshop: Path) -> None:
    done = strop("export", workshop / "run", *arguments, cache=workshop / "cache")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
