"""What keys of Axolotl, LLaMA-Factory, TRL and Unsloth mean where they come from, or why they are refused."""

from pathlib import Path
from typing import Any

import pytest

from strop.errors import RecipeError
from strop.recipe import DataFile, Recipe, load_recipe

BASE = "model_name_or_path: org/base\n"
ROWS = BASE + "train_file: rows.jsonl\n"


@pytest.fixture
def read(tmp_path: Path):
    def reads(text: str, *overrides: str) -> Recipe:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return load_recipe(tmp_path / "mine.yaml", overrides)

    return reads


def axolotl(entry: str, rest: str = "") -> str:
    return f"base_model: org/base\ndatasets:\n  - {entry}\n{rest}"


@pytest.mark.parametrize(
    ("entry", "files", "others"),
    [
        ("path: a.jsonl", ("a.jsonl",), {}),
        ("{path: a.jsonl, split: train}", ("a.jsonl",), {}),
        ("{path: org/rows, split: test}", ("org/rows:test",), {}),
        (
            "{path: org/rows, split: 'train[:5%]', name: fr}",
            (DataFile(path="org/rows", split="[:5%]", subset="fr"),),
            {},
        ),
        ("{path: a, type: alpaca}", ("a",), {"format": "alpaca", "template": "alpaca"}),
        ("{path: a, type: sharegpt}", ("a",), {"format": "sharegpt"}),
        ("{path: a, type: chat_template}", ("a",), {}),
        ("{path: a, type: completion}", ("a",), {"format": "text", "long_samples": "split"}),
        (
            "{path: a, type: completion, field: body, overlap_len: 8}",
            (DataFile(path="a", columns={"text": "body"}),),
            {"long_samples": "split", "long_overlap": 8},
        ),
        (
            "{path: a, type: chat_template, field_messages: talk}",
            (DataFile(path="a", columns={"messages": "talk", "system": "system"}),),
            {},
        ),
        (
            "{path: a, type: {field_instruction: q, field_input: i, field_output: o, field_system: s}}",
            (DataFile(path="a", columns={"instruction": "q", "input": "i", "output": "o", "system": "s"}),),
            {},
        ),
        ("{path: json, data_files: [a.jsonl, b.jsonl], ds_type: json}", ("a.jsonl", "b.jsonl"), {}),
        ("{path: folder, data_files: a.jsonl}", ("folder/a.jsonl",), {}),
        (
            "{path: a, chat_template: jinja, chat_template_jinja: '{{ messages }}'}",
            ("a",),
            {"chat_template": "{{ messages }}"},
        ),
        ("{path: a, shards: 1, roles_to_train: [assistant], train_on_eos: turn, conversation: }", ("a",), {}),
        ("{path: a, message_property_mappings: {role: from, content: value}, roles: {user: [human]}}", ("a",), {}),
        (
            "{path: a, message_field_role: from, message_field_content: value, message_field_training: train}",
            ("a",),
            {},
        ),
    ],
)
def test_axolotls_data_sets(read, entry: str, files: tuple[Any, ...], others: dict[str, Any]) -> None:
    data = read(axolotl(entry)).data
    assert data.train_file == files
    assert data.model_dump(exclude_defaults=True, exclude={"train_file"}) == others


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("{path: a, type: dpo}", "known types are alpaca"),
        ("{path: a, type: input_output}", "token ids"),
        ("{path: a, shards: 4}", "split: train"),
        ("{path: a, train_on_eos: all}", "train_on_eos='all'"),
        ("{path: a, roles_to_train: [user, assistant]}", "data.train_on=all"),
        ("{path: a, message_property_mappings: {role: speaker}}", "rename the turns' keys"),
        ("{path: a, roles: {assistant: [robot]}}", "robot"),
        ("{path: a, conversation: chatml}", "chat template"),
        ("{path: a, chat_template: chatml}", "data.chat_template"),
        ("{path: a, message_field_training: keep}", "trainable"),
        ("{path: a, message_field_training_detail: parts}", "mark whole turns"),
        ("{path: a, drop_system_message: true}", "drop_system_message=True"),
        ("{path: a, type: {field_instruction: q, format: 'Q: {instruction}'}}", "write it in Jinja"),
        ("{path: a, type: {system_prompt: Be brief.}}", "system_prompt"),
        ("{path: org/rows, data_files: a.jsonl}", "name its split"),
        ("{path: a.parquet, ds_type: json}", "ds_type"),
        ("{path: a, revision: v2}", "main branch"),
        ("{path: a, tpye: alpaca}", "did you mean type?"),
        ("{type: alpaca}", "every entry needs a path"),
    ],
)
def test_what_axolotl_would_do_to_rows_and_strop_would_not_is_refused(read, entry: str, word: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(axolotl(entry))
    assert "mine.yaml:3: datasets: " in str(caught.value)
    assert word in str(caught.value)


def test_several_types_in_one_run(read) -> None:
    recipe = read(
        axolotl("{path: a, type: alpaca}\n  - {path: b, type: chat_template}\n  - {path: c, type: completion}")
    )
    assert recipe.data.train_file == (DataFile(path="a", format="alpaca"), "b", DataFile(path="c", format="text"))
    assert (recipe.data.format, recipe.data.template) == ("auto", "auto")
    assert any("Axolotl would use its alpaca prompt" in note for note in recipe.notes)


def test_axolotls_other_keys_of_rows(read) -> None:
    rest = "sequence_len: 512\ntest_datasets: [{path: v.jsonl, type: alpaca, split: train}]\n"
    recipe = read(axolotl("{path: a, type: alpaca}", rest + "chat_template: tokenizer_default\n"))
    assert (recipe.data.validation_file, recipe.data.format) == (("v.jsonl",), "alpaca")
    assert recipe.data.long_samples == "drop"
    assert any("data.long_samples=drop: Axolotl drops" in note for note in recipe.notes)
    recipe = read(axolotl("path: a", rest + "excess_length_strategy: truncate\ndefault_system_message: Hi.\n"))
    assert (recipe.data.long_samples, recipe.data.system) == ("cut", "Hi.")


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen_25", "phi-3"])
@pytest.mark.parametrize("key", ["chat_template", "template"])
def test_a_template_by_its_name_elsewhere_is_refused_with_what_to_do(read, key: str, name: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine.yaml:3: {key}='{name}': .*(model's own).*remove.*data.chat_template"):
        read(ROWS + f"{key}: {name}\n")


@pytest.mark.parametrize(
    ("lines", "section", "key", "value"),
    [
        ("lora_rank: 8", "lora", "lora_alpha", 16),
        ("lora_rank: 8\nlora_alpha: 8", "lora", "lora_alpha", 8),
        ("lora_r: 8", "lora", "lora_alpha", 16),
        ("lora_r: 32", "lora", "lora_alpha", 16),
        ("dataset_text_field: body", "data", "columns", {"text": "body"}),
        ("completion_only_loss: false", "data", "train_on", "all"),
        ("assistant_only_loss: true", "data", "train_on", "completion"),
        ("assistant_only_loss: false", "data", "train_on", "all"),
        ("train_on_prompt: true", "data", "train_on", "all"),
        ("train_on_responses_only: {instruction_part: <u>, response_part: <a>}", "data", "train_on", "completion"),
        ("default_system: Be brief.", "data", "system", "Be brief."),
        ("mask_history: false", "data", "train_on", "completion"),
        ("truncation_mode: keep_start", "data", "long_samples", "cut"),
        ("lora_target_linear: true", "lora", "target_modules", "all-linear"),
        ("random_state: 7", "train", "seed", 7),
        ("max_steps:", "train", "max_steps", -1),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]", "lora", "r", 16),
        ("wandb_project: mine\nmodel_type: LlamaForCausalLM\nstrict: false", "lora", "r", 16),
    ],
)
def test_other_tools_keys(read, lines: str, section: str, key: str, value: object) -> None:
    recipe = read(ROWS + lines + "\n")
    assert getattr(getattr(recipe, section), key) == value
    assert recipe.notes[2:], "a key of another tool is reported"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("mask_history: true", "train: false"),
        ("enable_thinking: true", "chat template"),
        ("tool_format: qwen", "chat template"),
        ("truncation_mode: keep_end", "data.long_samples"),
        ("mix_strategy: interleave_under", "interleave_over"),
        ("interleave_probs: 0.5,0.5", "interleave_probs needs mix_strategy"),
        ("mix_strategy: interleave_over\ninterleave_probs: 0.5,0.5", "2 values for 1 data sets"),
        ("chat_template: jinja", "chat_template_jinja"),
        ("chat_template_path: org/model", "chat_template.jinja"),
        ("excess_length_strategy: raise", "drop or truncate"),
        ("group_by_length: true", "shuffles"),
        ("max_samples: 0", "at least 1"),
        ("plugins: [my.Plugin]", "my.Plugin"),
        ("lora_model_dir: old", "new adapter"),
        ("dataset_dir: mine", "name the files themselves"),
        ("dataset_mixture: {datasets: [{path: a, columns: [question]}]}", "which column is which"),
    ],
)
def test_other_tools_keys_that_would_change_the_result_are_refused(read, line: str, word: str) -> None:
    with pytest.raises(RecipeError, match=r"mine.yaml:\d") as caught:
        read(ROWS + line + "\n")
    assert word in str(caught.value)


def test_llama_factorys_keys_that_concern_every_data_set(read) -> None:
    text = BASE + "dataset: a.jsonl, b.jsonl\neval_dataset: v.jsonl\nmax_samples: 9\n"
    recipe = read(text + "mix_strategy: interleave_over\ninterleave_probs: 0.7,0.3\n")
    a, b = recipe.data.train_file
    assert (a, b) == (
        DataFile(path="a.jsonl", max_samples=9, weight=0.7),
        DataFile(path="b.jsonl", max_samples=9, weight=0.3),
    )
    assert recipe.data.validation_file == (DataFile(path="v.jsonl", max_samples=9),)
    assert recipe.data.max_train_samples is None
    for word in ("max_samples of every entry", "read as the weights 0.7, 0.3"):
        assert any(word in note for note in recipe.notes), recipe.notes
    assert read(text + "mix_strategy: concat\n").data.train_file[0] == DataFile(path="a.jsonl", max_samples=9)
    assert read(text + "mix_strategy: interleave_over\n").data.train_file[1].weight == 1


def test_a_name_of_llama_factorys_list_is_said_to_be_none_here(read) -> None:
    notes = read(BASE + "dataset: identity,rows.jsonl\n").notes
    assert [note for note in notes if "dataset_info.json" in note] == [
        "dataset: identity is taken for a path: LLaMA-Factory's dataset_info.json is not read, so name the file itself"
    ]


def test_the_rank_of_a_command_line_is_doubled_where_the_file_is_llama_factorys(read) -> None:
    recipe = read(ROWS + "lora_rank: 8\n", "lora.r=4")
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (4, 8)
    assert "lora.lora_alpha=8: twice lora_rank, LLaMA-Factory's default" in recipe.notes
    assert read(ROWS, "lora_rank=4").lora.lora_alpha == 16


def test_trls_data_sets(read) -> None:
    recipe = read(BASE + "dataset_name: org/rows\ndataset_config: fr\ndataset_train_split: 'train[:10%]'\n")
    assert recipe.data.train_file == (DataFile(path="org/rows", subset="fr", split="[:10%]"),)
    assert any("TRL learns whole conversations" in note for note in recipe.notes)
    mixture = "dataset_mixture: {datasets: [{path: a, columns: [messages]}, {path: b}], test_split_size: 0.1}\n"
    recipe = read(BASE + mixture)
    assert recipe.data.train_file == (DataFile(path="a", columns={"messages": "messages"}), "b")
    assert recipe.data.validation_split_percentage == 10


def test_trls_chat_template_path(read, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    for place in (tmp_path, tmp_path / "chat_template.jinja"):
        assert read(ROWS + f"chat_template_path: {place}\n").data.chat_template == "{{ messages }}"


def test_keys_without_a_value_are_not_set_and_named_once(read) -> None:
    recipe = read(
        ROWS + "wandb_project:\nmax_steps:\nspecial_tokens:\nlora_model_dir:\nsome_key:\nmodel:\n  revision:\n"
    )
    assert recipe.notes[-1] == "blank, so not set: wandb_project, max_steps, special_tokens, lora_model_dir, some_key"
    assert (recipe.train.max_steps, recipe.model.revision) == (-1, None)
    assert read(ROWS + "max_steps: 5\n", "max_steps=null").train.max_steps == -1
    with pytest.raises(RecipeError, match=r"data.train_file is missing"):
        read(BASE + "train_file:\n")
