import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import RecipeError
from strop.recipe import Recipe, differences, list_recipes, load_recipe, recipe_text
from strop.recipe_file import starter_recipe

MINIMAL = "model: {model_name_or_path: org/base}\ndata: {train_file: rows.jsonl}\n"


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def test_defaults_are_the_pages(write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.name == "mine"
    assert str(recipe.output_dir) == "runs/mine"
    assert recipe.lora.r == 16
    assert recipe.lora.lora_alpha == 16
    assert len(recipe.lora.target_modules) == 7
    assert recipe.train.samples_per_step == 8
    assert recipe.train.learning_rate == 2e-4
    assert recipe.notes == ()


@pytest.mark.parametrize("name", ["demo", "quick-test", "phi3-census"])
def test_shipped_recipes_load_and_print(name: str) -> None:
    assert name in list_recipes()
    assert load_recipe(name).name == name
    assert "model:" in recipe_text(name)


def test_phi3_census_is_the_pages_recipe() -> None:
    recipe = load_recipe("phi3-census")
    assert recipe.model.model_name_or_path == "unsloth/Phi-3-mini-4k-instruct"
    assert recipe.model.max_seq_length == 2048
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (16, 16, 0)
    train = recipe.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (4, 2)
    assert (train.learning_rate, train.warmup_steps, train.num_train_epochs) == (2e-4, 100, 1)
    assert (train.lr_scheduler_type, train.save_steps, train.report_to) == ("linear", 10000, "none")
    assert recipe.modal.gpu == ("H200",)
    assert recipe.modal.timeout == 86400


@given(
    r=st.integers(1, 256),
    rate=st.floats(1e-8, 1.0),
    files=st.lists(st.text("abc/é *'\"#:-", min_size=1, max_size=12), min_size=1, max_size=3),
    best=st.booleans(),
)
def test_a_recipe_reads_back_as_itself(r: int, rate: float, files: list[str], best: bool) -> None:
    recipe = Recipe(
        name="x",
        model={"model_name_or_path": "org/base"},
        lora={"r": r},
        data={"train_file": files, "validation_file": files},
        train={"learning_rate": rate, "load_best_model_at_end": best},
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(recipe.to_yaml())
        file.flush()
        assert load_recipe(file.name) == recipe


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_steps=60", "max_steps", 60),
        ("max_steps=60", "max_steps", 60),
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("train.learning_rate=.5E-3", "learning_rate", 5e-4),
        ("lr=3e-5", "learning_rate", 3e-5),
        ("load_best_model_at_end=true", "load_best_model_at_end", True),
    ],
)
def test_overrides_on_the_command_line(write, override: str, key: str, value: object) -> None:
    recipe = load_recipe(write(MINIMAL), [override, "val_size=0.1"])
    assert getattr(recipe.train, key) == value


def test_overrides_from_python_nested_or_dotted(write) -> None:
    path = write(MINIMAL + "train: {max_steps: 5}\n")
    for overrides in ({"train.max_steps": 7}, {"train": {"max_steps": 7}}, {"max_steps": 7}):
        assert load_recipe(path, overrides).train.max_steps == 7


def test_numbers_that_yaml_takes_for_text(write) -> None:
    recipe = load_recipe(write(MINIMAL + "train: {learning_rate: 2e-4, adam_epsilon: 1E-6}\n"))
    assert recipe.train.learning_rate == 2e-4
    assert recipe.train.adam_epsilon == 1e-6


AXOLOTL = """
base_model: org/base
datasets:
  - path: rows.jsonl
    type: alpaca
val_set_size: 0.05
sequence_len: 1024
sample_packing: true
adapter: lora
lora_r: 32
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 0.0002
bf16: true
train_on_inputs: false
"""
LLAMA_FACTORY = """
model_name_or_path: org/base
stage: sft
finetuning_type: lora
dataset: rows.jsonl
cutoff_len: 1024
lora_rank: 32
lora_target: [q_proj, v_proj]
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
num_train_epochs: 3.0
learning_rate: 2.0e-4
bf16: true
val_size: 0.05
"""


@pytest.mark.parametrize("text", [AXOLOTL, LLAMA_FACTORY])
def test_other_tools_files_are_understood_and_reported(write, text: str) -> None:
    recipe = load_recipe(write(text))
    assert recipe.model.max_seq_length == 1024
    assert recipe.model.precision == "bfloat16"
    assert recipe.lora.r == 32
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    assert recipe.data.train_file == ("rows.jsonl",)
    assert recipe.data.validation_split_percentage == 5
    assert recipe.train.samples_per_step == 8
    assert recipe.train.num_train_epochs == 3
    for line in ("model.max_seq_length", "lora.r", "data.validation_split_percentage"):
        assert any(line in note for note in recipe.notes), line


def test_identity_and_differences(write) -> None:
    path = write(MINIMAL)
    base = load_recipe(path)
    assert differences(base, load_recipe(path, ["logging_steps=9", "output_dir=x", "save_steps=3"])) == []
    assert differences(base, load_recipe(path, ["lora_r=8"])) == ["lora.r: 16 -> 8"]
    assert differences(base, load_recipe(path, ["seed=1"])) == ["train.seed: 42 -> 1"]


def test_the_starter_recipe_loads(write) -> None:
    recipe = load_recipe(write(starter_recipe("my rows: 1.jsonl", "org/base")))
    assert recipe.data.train_file == ("my rows: 1.jsonl",)
    assert recipe.data.validation_split_percentage == 5
    assert recipe.notes == ()


def test_recipes_are_immutable(write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write(MINIMAL)).train.max_steps = 3  # type: ignore[misc]


def test_an_unknown_shipped_name() -> None:
    with pytest.raises(RecipeError, match="phi3-census"):
        recipe_text("phi3")


def test_importing_strop_and_reading_a_recipe_is_cheap() -> None:
    code = "import sys, strop; strop.load_recipe('demo'); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
