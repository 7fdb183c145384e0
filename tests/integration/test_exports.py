"""Exports end to end: loaded by the programs that they are for, refused when they differ, and whole or absent."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from strop import Run
from strop.commands.export import _reference
from strop.commands.load import load_run_template
from strop.errors import ParityError
from strop.exporting.parity.gate import Reference, check_parity
from strop.model.pretrained.folder import open_model
from strop.run.reporter import Reporter
from tiny_runs import environment, strop, write_bfloat16_recipe
from waiting import until

pytestmark = pytest.mark.xdist_group("exports")  # what they share takes 20 seconds to make


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and both of its exports."""
    folder = tmp_path_factory.mktemp("exports")
    # Not the usual tiny model, on which rounding to bfloat16 alone moves the likeliest token at 7% of positions.
    recipe = write_bfloat16_recipe(folder, hidden_size=64, intermediate_size=128)
    done = strop("train", recipe, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    for to in ("adapter", "merged"):
        done = strop("export", folder / "run", "--to", to, "-o", folder / to, cache=folder / "cache")
        assert done.returncode == 0, done.stderr
        assert "same greedy answers" in done.stdout
    return folder


def test_the_gates_figures_are_in_the_export(workshop: Path) -> None:
    for to, consumer in (("adapter", "peft"), ("merged", "transformers")):
        parity = json.loads((workshop / to / "parity.json").read_text())
        assert parity["consumer"].startswith(consumer)
        assert parity["same_prompts"] == parity["num_prompts"] == parity["num_answers"] == 6
        assert parity["num_positions"] > 6
        assert 0 < parity["distance"]["logits"] < parity["limits"]["logits"]
    adapter, merged = (json.loads((workshop / to / "parity.json").read_text()) for to in ("adapter", "merged"))
    assert adapter["distance"]["logits"] < 1e-4 < merged["distance"]["logits"]  # bfloat16's rounding


def test_the_merge_is_the_base_plus_the_product_rounded_once(workshop: Path) -> None:
    base, merged = (load_file(workshop / name / "model.safetensors") for name in ("model", "merged"))
    adapter = load_file(workshop / "run" / "adapter" / "adapter_model.safetensors")
    assert base.keys() == merged.keys()
    changed = 0
    for name, tensor in merged.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        want = base[name].float()
        if key.format("A") in adapter:
            want = want + 2.0 * adapter[key.format("B")].float() @ adapter[key.format("A")].float()  # alpha 8, r 4
            changed += 1
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, want.bfloat16()) or (tensor.float() - want).abs().max() <= want.abs().max() * 2**-8
    assert changed == 14
    config = transformers.AutoConfig.from_pretrained(workshop / "merged")
    assert config.dtype == torch.bfloat16


def zero_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, path, {"format": "pt"})


def swap_queries_and_keys(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    save_file(tensors | {name: tensors[name].flip(0).contiguous()}, path, {"format": "pt"})


def lose_a_stop_token(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [5]}))


def change_the_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text("USER: {{ messages[-1]['content'] }} ASSISTANT:")


def double_the_scaling(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("merged", zero_a_layer, "logits|greedy"),
    ("merged", swap_queries_and_keys, "logits|greedy"),
    ("merged", lose_a_stop_token, "does not stop at token"),
    ("merged", change_the_template, "prompt 1's ids differ"),
    ("adapter", double_the_scaling, "logits|greedy"),
]


@pytest.fixture(scope="module")
def trained(workshop: Path) -> tuple[Path, Reference]:
    """The base model's folder, and what the trained model answers."""
    run = Run(workshop / "run")
    base = open_model(run.recipe.model)
    return base.path, _reference(run, base, load_run_template(run, base), 256, "merged", Reporter())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "spoil", "said"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
def test_what_differs_is_said(
    kind: str,
    spoil: Callable[[Path], None],
    said: str,
    workshop: Path,
    trained: tuple[Path, Reference],
    tmp_path: Path,
) -> None:
    base, reference = trained
    shutil.copytree(workshop / kind, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(ParityError, match=said):
        check_parity(kind, tmp_path / "spoilt", base if kind == "adapter" else None, reference)


@pytest.mark.slow
def test_killed_at_any_moment_it_is_whole_or_absent(workshop: Path) -> None:
    """Nothing but the hidden folder is left, which the next export to that place removes."""
    target = workshop / "killed"
    command = [sys.executable, "-m", "strop", "export", workshop / "run", "--to", "merged", "-o", target]
    seen_hidden = False
    for begun in (".*killed.*", ".*killed.*/*.safetensors"):
        child = subprocess.Popen(command, env=environment(workshop / "cache"), stderr=subprocess.DEVNULL)
        until(lambda begun=begun, child=child: list(workshop.glob(begun)) or child.poll() is not None)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen_hidden |= bool(list(workshop.glob(".*killed.*")))
        assert not target.exists()
    assert seen_hidden
    done = strop("export", workshop / "run", "--to", "merged", "-o", target, cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    assert not list(workshop.glob(".*killed.*"))
    again = strop("export", workshop / "run", "--to", "merged", "-o", target, cache=workshop / "cache")
    assert again.returncode == 2
    assert "already exists" in again.stderr


@pytest.mark.slow
def test_a_4_bit_base_is_merged_onto_only_when_asked(workshop: Path, tmp_path: Path) -> None:
    """Its adapter is tried on the base as bitsandbytes rounds it, and on the plain one it is another model."""
    run = workshop / "nf4"
    shutil.copytree(workshop / "run", run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("load_in_4bit: false", "load_in_4bit: true"))
    done = strop("export", run, "--to", "merged", cache=workshop / "cache")
    assert done.returncode == 2
    assert "--dequantise" in done.stderr
    assert not (run / "merged").exists()
    done = strop("export", run, "-o", tmp_path / "adapter", cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "adapter" / "parity.json").read_text())["kind"] == "adapter-nf4"
    base = open_model(Run(run).recipe.model)
    reference = _reference(Run(run), base, load_run_template(Run(run), base), 256, "adapter", Reporter())
    with pytest.raises(ParityError, match="logits"):
        check_parity("adapter", tmp_path / "adapter", base.path, reference)
