import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import RecipeError
from strop.recipe import Recipe, differences, list_recipes, load_recipe, recipe_text
from strop.recipe.shipped import starter_recipe

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


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n'),
        ("rows.csv", "question,answer\n1,2\n"),
        ("rows.tsv", "question\tanswer\na\tb\n"),
        ("rows.parquet", b"PAR1\xff"),
    ],
)
def test_rows_in_place_of_a_recipe(tmp_path: Path, name: str, rows: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).endswith(f"; if these are your rows, `strop init {path}` writes a recipe for them")


def test_a_broken_recipe_is_not_taken_for_rows(write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("model: {"))
    assert "strop init" not in str(caught.value)


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
    assert (train.lr_scheduler_type, train.save_steps, train.report_to) == ("linear", 10000, ())
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


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "adamw_bnb_8bit"])
@pytest.mark.parametrize(
    "four_bits", ["load_in_4bit: true", "quantization_bit: 4", "adapter: qlora\nload_in_4bit: true"]
)
def test_qlora_by_its_names(write, four_bits: str, optim: str) -> None:
    text = MINIMAL + f"{four_bits}\noptim: {optim}\nbnb_4bit_quant_type: nf4\nbnb_4bit_use_double_quant: true\n"
    recipe = load_recipe(write(text))
    assert recipe.model.load_in_4bit
    assert recipe.train.optim == "adamw_8bit"
    assert ("train.optim='adamw_8bit'" in " ".join(recipe.notes)) == (optim != "adamw_8bit")


def test_a_batch_for_each_gpu_is_asked_for_by_name(write) -> None:
    each = "train: {per_device_train_batch_size: 8, gradient_accumulation_steps: 2, batch_per_gpu: %s}\n"
    step, gpu = (load_recipe(write(MINIMAL + each % value)) for value in ("false", "true"))
    assert step.on_gpus(4) is step
    assert gpu.on_gpus(4).train.samples_per_step == 64
    assert gpu.on_gpus(4).on_gpus(2).train.samples_per_step == 64, "it is resolved once"
    assert gpu.on_gpus(1).identity() == step.identity()
    assert gpu.on_gpus(2).identity() != step.identity()


def test_8_bit_moments_are_part_of_a_runs_identity_and_the_fused_kernel_is_not(write) -> None:
    optims = [
        load_recipe(write(MINIMAL), {"train.optim": o}) for o in ("adamw_torch", "adamw_torch_fused", "adamw_8bit")
    ]
    assert differences(optims[0], optims[1]) == []
    assert differences(optims[0], optims[2]) == ["train.optim: adamw_torch -> adamw_8bit"]


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


def test_flat_keys_are_placed_and_reported(write) -> None:
    recipe = load_recipe(write("model_name_or_path: m\ntrain_file: t\nmax_steps: 3\n"))
    assert recipe.train.max_steps == 3
    assert "max_steps: read as train.max_steps" in recipe.notes


@pytest.mark.parametrize(
    ("line", "section", "key", "value"),
    [
        ("lora_target: q_proj,v_proj", "lora", "target_modules", ("q_proj", "v_proj")),
        ("lora_target: all", "lora", "target_modules", "all-linear"),
        ("use_gradient_checkpointing: unsloth", "train", "gradient_checkpointing", True),
        ("bf16: false", "model", "precision", "float32"),
        ("bf16:", "model", "precision", "auto"),
        ("train_on_inputs: true", "data", "train_on", "all"),
        ("val_size: 0.07", "data", "validation_split_percentage", 7.0),
        ("modal: {gpu: [A10G, 'a10g:2']}", "modal", "gpu", ("A10", "A10:2")),
        ("modal: {gpu: [A100, 'a100:2']}", "modal", "gpu", ("A100-40GB", "A100-40GB:2")),
    ],
)
def test_other_tools_values(write, line: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load_recipe(write(MINIMAL + line + "\n")), section), key) == value


def test_axolotls_datasets_keep_their_shape_and_split(write) -> None:
    recipe = load_recipe(write("base_model: m\ndatasets: [{path: org/rows, type: completion, split: test}]\n"))
    assert recipe.data.train_file == ("org/rows:test",)
    assert recipe.data.format == "text"


def test_a_commit_is_no_secret(write) -> None:
    assert load_recipe(write(MINIMAL), ["model.revision=" + "ab12" * 10]).model.revision == "ab12" * 10


@pytest.mark.parametrize("revision", ["12e4", "1e-5", "0x1f", "1:30", "2020-01-01", "on", "~"])
def test_text_that_looks_like_something_else_reads_back(write, revision: str) -> None:
    recipe = load_recipe(write(MINIMAL), {"revision": revision})
    assert load_recipe(write(recipe.to_yaml())).model.revision == revision


def test_notes_do_not_tell_recipes_apart(write) -> None:
    recipe = load_recipe(write(MINIMAL), ["lr=1e-3"])
    assert recipe.notes
    again = load_recipe(write(recipe.to_yaml()))
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert recipe != load_recipe(write(MINIMAL), ["lr=2e-3"])


def test_a_path_and_a_single_override(write) -> None:
    assert load_recipe(Path(write(MINIMAL)), "max_steps=5").train.max_steps == 5


def test_a_warmup_that_outlasts_the_run_is_remarked_on() -> None:
    (note,) = load_recipe("phi3-census", ["max_steps=60"]).notes
    assert "train.warmup_steps=100" in note
    assert load_recipe("phi3-census", ["max_steps=500"]).notes == ()


def test_a_rate_that_is_hardly_meant_is_remarked_on() -> None:
    (note,) = load_recipe("phi3-census", ["learning_rate=2"]).notes
    assert "train.learning_rate=2" in note


@pytest.mark.parametrize(
    "change",
    [
        ["max_tokens_per_microbatch=512"],
        ["gradient_checkpointing=true"],
        ["per_device_train_batch_size=2", "gradient_accumulation_steps=4"],
        ["eval_steps=5"],
    ],
)
def test_what_only_moves_memory_or_time_may_change_in_a_run(write, change: list[str]) -> None:
    path = write(MINIMAL)
    before = load_recipe(path, ["val_size=0.1"])
    assert differences(before, load_recipe(path, ["val_size=0.1", *change])) == []


def test_evaluations_decide_the_result_where_they_choose_it(write) -> None:
    path = write(MINIMAL)
    best = ["val_size=0.1", "load_best_model_at_end=true"]
    changes = differences(load_recipe(path, [*best, "eval_steps=9"]), load_recipe(path, [*best, "eval_steps=5"]))
    assert changes == ["train.eval_steps: 9 -> 5"]


def test_the_base_may_be_evaluated_or_not_as_a_run_goes_on(write) -> None:
    path, best = write(MINIMAL), ["val_size=0.1", "load_best_model_at_end=true"]
    before, after = (load_recipe(path, [*best, *more]) for more in (["eval_on_start=false"], []))
    assert (before.train.eval_on_start, after.train.eval_on_start) == (False, None)
    assert differences(before, after) == []


@pytest.mark.parametrize("value", ["false", "null"])
def test_without_held_out_rows_there_is_no_base_loss(write, value: str) -> None:
    assert not load_recipe(write(MINIMAL), [f"eval_on_start={value}"]).train.eval_on_start
    with pytest.raises(RecipeError, match=r"eval_on_start=True needs held-out rows"):
        load_recipe(write(MINIMAL), ["eval_on_start=true"])


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
