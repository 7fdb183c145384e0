"""Recipes that are wrong: each gets one RecipeError that names the key, the value, the rule and the nearest name."""

from pathlib import Path

import pytest

from strop.errors import RecipeError
from strop.recipe import load_recipe

GOOD = "model: {model_name_or_path: org/base}\ndata: {train_file: rows.jsonl}\n"

FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "typo": (GOOD + "train: {learning_rat: 1}\n", ["mine.yaml:3", "learning_rat=1", "train.learning_rate"]),
    "typo at top": (GOOD + "learning_rat: 1\n", ["learning_rat", "train.learning_rate"]),
    "typo of an alias": (GOOD + "micro_batch_sise: 1\n", ["train.per_device_train_batch_size"]),
    "nothing near": (GOOD + "zzzqqq: 1\n", ["unknown key zzzqqq=1"]),
    "unknown section": (GOOD + "trian: {max_steps: 1}\n", ["trian"]),
    "wrong type": (GOOD + "train: {max_steps: many}\n", ["mine.yaml:3", "train.max_steps='many'", "integer"]),
    "a list for a number": (GOOD + "train: {max_steps: [1]}\n", ["train.max_steps"]),
    "out of range": (GOOD + "lora: {r: 0}\n", ["lora.r=0", "greater than or equal to 1"]),
    "negative rate": (GOOD + "train: {learning_rate: -1.0}\n", ["train.learning_rate=-1.0", "greater than 0"]),
    "nan": (GOOD + "train: {learning_rate: .nan}\n", ["train.learning_rate=nan"]),
    "infinite": (GOOD + "train: {weight_decay: .inf}\n", ["train.weight_decay=inf"]),
    "dropout of one": (GOOD + "lora: {lora_dropout: 1.0}\n", ["lora.lora_dropout=1.0", "less than 1"]),
    "bad choice": (GOOD + "train: {lr_scheduler_type: polynomial}\n", ["polynomial", "cosine"]),
    "optimizer not here": (GOOD + "train: {optim: lion_8bit}\n", ["train.optim='lion_8bit'", "adamw_torch"]),
    "4 bits and not": (GOOD + "adapter: qlora\nload_in_4bit: false\n", ["adapter='qlora'", "contradicts"]),
    "another 4-bit format": (GOOD + "bnb_4bit_quant_type: fp4\n", ["bnb_4bit_quant_type='fp4'", "NF4"]),
    "float8 not there": (
        GOOD + "precision: float8\nengine: unsloth\n",
        ["model.precision=float8", "train.engine=unsloth", "NF4"],
    ),
    "no packing there": (
        GOOD + "train: {engine: unsloth, max_tokens_per_microbatch: 9}\n",
        ["microbatch=9", "unsloth"],
    ),
    "8 bits": (GOOD + "load_in_8bit: true\n", ["load_in_8bit=True", "precision"]),
    "half precision": (GOOD + "fp16: true\n", ["fp16=True", "bfloat16"]),
    "full fine-tuning": (GOOD + "finetuning_type: full\n", ["finetuning_type='full'", "LoRA"]),
    "another adapter": (GOOD + "adapter: ia3\n", ["adapter='ia3'", "LoRA"]),
    "warmup twice": (GOOD + "train: {warmup_steps: 3, warmup_ratio: 0.1}\n", ["warmup_steps", "warmup_ratio"]),
    "no steps": (GOOD + "train: {max_steps: 0}\n", ["max_steps=0", "-1"]),
    "patience without evaluations": (
        GOOD.replace("rows.jsonl", "rows.jsonl, validation_file: v.jsonl") + "train: {early_stopping_patience: 2}\n",
        ["early_stopping_patience", "eval_steps"],
    ),
    "evaluation of nothing": (GOOD + "train: {eval_steps: 5}\n", ["train.eval_steps", "data.validation_file"]),
    "best of nothing": (GOOD + "train: {load_best_model_at_end: true}\n", ["load_best_model_at_end", "validation"]),
    "held out twice": (
        GOOD.replace("rows.jsonl", "r.jsonl, validation_file: v.jsonl, validation_split_percentage: 5"),
        ["data.validation_file", "data.validation_split_percentage"],
    ),
    "contradicting names": (GOOD + "lr: 0.1\nlearning_rate: 0.2\n", ["contradicts", "train.learning_rate"]),
    "key twice": (GOOD + "train: {seed: 1,\n  seed: 2}\n", ["mine.yaml:4", "seed is set twice"]),
    "section twice": (GOOD + "data: {train_file: x.jsonl}\n", ["data is set twice"]),
    "no model": ("data: {train_file: rows.jsonl}\n", ["model", "missing"]),
    "no data": ("model: {model_name_or_path: org/base}\n", ["data", "missing"]),
    "empty train_file": (GOOD.replace("rows.jsonl", "[]"), ["data.train_file"]),
    "unknown gpu": (GOOD + "modal: {gpu: H300}\n", ["modal.gpu='H300'", "H200"]),
    "a day and more": (GOOD + "modal: {timeout: 90000}\n", ["modal.timeout=90000", "86400"]),
    "a token": (GOOD + "model_revision: hf_abcdefghijklmnopqrstuvwxyz\n", ["access token", "HF_TOKEN"]),
    "a tag": (GOOD + "train: {seed: !!python/object/apply:os.system ['touch hacked']}\n", ["mine.yaml:3"]),
    "not a mapping": ("- a\n- b\n", ["not a mapping"]),
    "a sentence": ("train my model please\n", ["not a mapping"]),
    "empty": ("", ["empty"]),
    "only comments": ("# nothing\n", ["empty"]),
    "tabs": ("model:\n\tmodel_name_or_path: x\n", ["not valid YAML"]),
    "unclosed": ("model: {model_name_or_path: x\n", ["not valid YAML"]),
    "binary": (b"\x00\x01\x02\xff\xfe", ["mine.yaml"]),
    "latin-1": ("model: {model_name_or_path: caf\xe9}".encode("latin-1"), ["not UTF-8"]),
    "an anchor bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n",
        ["mine.yaml:2", "reference"],
    ),
    "too large": (GOOD + "#" * (1 << 20), ["at most"]),
    "an unquoted glob": (GOOD.replace("rows.jsonl", "*.jsonl"), ["mine.yaml:2", "quotes"]),
    "a tag on a section": (GOOD + "train: !!python/object:os.x {seed: 3}\n", ["mine.yaml:3", "python/object"]),
    "a tag on the file": ("!!python/object/apply:os.system\n" + GOOD, ["mine.yaml:1", "python/object"]),
    "a list as a key": (GOOD + "? [a, b]\n: 3\n", ["mine.yaml:3", "must be a name"]),
    "a number for a section": (GOOD + "train: 5\n", ["train=5", "section"]),
    "a file for a section": (GOOD.replace("{train_file: rows.jsonl}", "rows.jsonl"), ["data='rows.jsonl'", "section"]),
    "true for a number": (GOOD + "lora: {r: true}\n", ["lora.r=True"]),
    "a count for a share": (GOOD + "val_size: 500\n", ["val_size=500", "must be a fraction from 0 up to 1"]),
    "8 bits by another name": (GOOD + "quantization_bit: 8\n", ["quantization_bit=8"]),
    "text for true": (GOOD + "train_on_inputs: 'false'\n", ["train_on_inputs='false'", "true or false"]),
    "a blank adapter": (GOOD + "adapter:\n", ["adapter=None", "LoRA"]),
    "rows of another shape": ("model: m\ndatasets: [{path: a, type: dpo}]\n", ["dpo", "alpaca"]),
    "a dataset's unread key": (
        "model: m\ndatasets: [{path: a, shards: 4}]\n",
        ["mine.yaml:2: datasets: shards=4", "split: train[:25%]"],
    ),
    "gpus without a number": (GOOD + "modal: {gpu: 'H100:zz'}\n", ["modal.gpu='H100:zz'", "1 to 8"]),
    "no gpu": (GOOD + "modal: {gpu: []}\n", ["modal.gpu=[]"]),
    "a choice with a typo": (GOOD + "lr_scheduler: cosin\n", ["train.lr_scheduler_type='cosin'", "mean cosine?"]),
    "paged moments of 32 bits": (GOOD + "optim: paged_adamw_32bit\n", ["train.optim='paged_adamw_32bit'"]),
    "a token in a URL": (GOOD + "base: https://u:hf_abcdefghijklmnopqrstuvwxyz@x/y\n", ["a password in an address"]),
    "a token in broken YAML": ("model: {x: hf_abcdefghijklmnopqrstuvwxyz\n", ["not valid YAML"]),
    "a password by its key": (GOOD + "wandb_api_key: 0123456789abcdef\n", ["wandb_api_key", "access token"]),
    "a bad name": (GOOD + "name: ../../etc\n", ["name"]),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_files(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, words = FILES[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (tmp_path / "hacked").exists()
    assert "hf_abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_steps", ["'max_steps' is not an override", "train.max_steps=60"]),
        ("=5", ["not an override"]),
        ("max_step=5", ["unknown key max_step", "train.max_steps"]),
        ("train.max_steps=x", ["train.max_steps='x'"]),
        ("lora.r={", ["not valid YAML"]),
        ("nowhere.r=1", ["unknown section 'nowhere'"]),
        ("seed=2020-13-45", ["train.seed='2020-13-45'"]),
        ("seed=0x_", ["not valid YAML"]),
        ("lr=hf_abcdefghijklmnopqrstuvwxyz", ["access token"]),
        ("hf_abcdefghijklmnopqrstuvwxyz", ["not an override"]),
    ],
)
def test_wrong_overrides(override: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), [override])
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "hf_abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("phi3-cencus", ["did you mean phi3-census"]),
        ("no/such/file.yaml", ["no/such/file.yaml"]),
        (".", ["is a folder"]),
        ("x" * 5000, ["there is no recipe file"]),
        ("a\0b", ["there is no recipe file"]),
        ("hf_abcdefghijklmnopqrstuvwxyz", ["(a secret)"]),
    ],
)
def test_wrong_names(name: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_all_faults_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "lora: {r: 0, alhpa: 3}\ntrain: {max_steps: x, seed: -1}\nfp16: true\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["oops", "lr=0"])
    lines = str(caught.value).splitlines()
    for word in ("lora.r=0", "alhpa", "train.max_steps", "train.seed", "fp16", "oops", "train.learning_rate"):
        assert any(word in line for line in lines), (word, lines)


def test_contradictions_are_said_beside_faults_but_not_what_a_fault_leads_to(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "train: {seed: -1, max_steps: 0, warmup_steps: 3, warmup_ratio: 0.1, eval_steps: 5}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["validation_file=5"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4, lines
    for word in ("train.seed=-1", "max_steps=0", "train.warmup_ratio=0.1", "data.validation_file=5"):
        assert any(word in line for line in lines), (word, lines)


def test_the_same_key_twice_on_the_command_line() -> None:
    for overrides in (["name=a", "name=b"], ["seed=1", "train.seed=2"]):
        with pytest.raises(RecipeError, match="contradicts"):
            load_recipe("demo", overrides)


def test_python_overrides_that_are_no_keys() -> None:
    with pytest.raises(RecipeError, match="unknown key 5=1"):
        load_recipe("demo", {5: 1})  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match="train is a section"):
        load_recipe("demo", {"train": 5})
