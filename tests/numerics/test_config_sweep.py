"""Random config.json files: each is refused by name, refused by transformers too, or gives transformers' logits."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig

from config_sweep import FAMILIES, SIZES, WILD, Outcome, draw, judge
from strop.errors import ModelError
from strop.model import config as model_config
from strop.model.config import read_config
from strop.model.config_keys import HARMLESS, NOT_OBEYED, OBEYED
from tiny_models import FAMILIES as CHECKPOINTS
from tiny_models import write_checkpoint

IN_CI, ALL = range(80), range(80, 1330)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers tells of each odd config."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.logging.set_verbosity(level)


def sweep(seeds: Iterable[int], folder: Path) -> dict[int, Outcome]:
    return {seed: judge(draw(seed), folder / "model") for seed in seeds}


def check(outcomes: dict[int, Outcome]) -> None:
    """None is wrong, and most of what a program can say of a config is logits."""
    wrong = {seed: outcome for seed, outcome in outcomes.items() if outcome.kind == "wrong"}
    assert not wrong, {seed: (outcome.detail, draw(seed)) for seed, outcome in wrong.items()}
    unnamed = [o.detail for o in outcomes.values() if o.kind == "refused" and not o.detail.startswith("config.json: ")]
    assert not unnamed
    equal = Counter(draw(seed)["model_type"] for seed, outcome in outcomes.items() if outcome.kind == "equal")
    assert all(equal[family] > 0.4 * len(outcomes) / len(FAMILIES) for family in FAMILIES), equal


def test_a_part_of_the_sweep(tmp_path: Path) -> None:
    check(sweep(IN_CI, tmp_path))


@pytest.mark.sweep
@pytest.mark.slow
def test_all_of_the_sweep(tmp_path: Path) -> None:
    check(sweep(ALL, tmp_path))


def _reads_no_window(*args: Any) -> tuple[None, ...]:
    return (None,) * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_read_windows", _reads_no_window),
        ("_KV_HEADS", {}),
        ("_MAX_POSITIONS", dict.fromkeys(FAMILIES, 2048)),
    ],
)
def test_the_sweep_finds_a_wrong_reading(
    name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with one rule of reading a config broken, some config gives other logits, or does not load."""
    monkeypatch.setattr(model_config, name, value)
    found = None
    for seed in range(1330):
        if not _touches(draw(seed), name):
            continue
        try:
            found = judge(draw(seed), tmp_path / "model")
        except ModelError:  # the weights do not fit what was read
            return
        if found.kind == "wrong":
            return
    raise AssertionError(f"nothing noticed: {found}")


def _touches(config: dict[str, Any], name: str) -> bool:
    if name == "_KV_HEADS":
        return "num_key_value_heads" not in config
    return "sliding_window" in config if name == "_read_windows" else "max_position_embeddings" not in config


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_none_can_have_is_refused_by_name(key: str) -> None:
    sound = draw(0) | {"model_type": "llama"}
    for value in WILD:
        with pytest.raises(ModelError, match=f"config.json: {key} "):
            read_config(sound | {key: value})


def test_what_transformers_reads_is_obeyed_refused_or_known_to_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attribute of the config that transformers asks for while it loads, computes and generates."""
    read: set[str] = set()
    look = PreTrainedConfig.__getattribute__

    def note(self: PreTrainedConfig, key: str) -> Any:
        read.add(key)
        return look(self, key)

    for family in CHECKPOINTS:
        folder = write_checkpoint(tmp_path / family, family)
        with monkeypatch.context() as patch:
            patch.setattr(PreTrainedConfig, "__getattribute__", note)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            with torch.no_grad():
                model(torch.arange(20)[None])
                model.generate(torch.arange(14)[None], max_new_tokens=4, do_sample=False)
    methods = {key for key in read if callable(getattr(PreTrainedConfig, key, None))}
    asked = {key for key in read if not key.startswith("__")} - methods
    assert {"is_causal", "kv_sharing_modes", "text_config", "hidden_size"} <= asked  # the watch works
    assert asked - (OBEYED | HARMLESS | NOT_OBEYED.keys()) == set()
    assert {key for key in NOT_OBEYED if key not in asked} <= {"attribute_map"}  # which is asked for behind this watch


@pytest.mark.parametrize("key", NOT_OBEYED)
def test_what_strop_does_not_have_is_refused_by_name(key: str) -> None:
    sound = draw(0) | {"model_type": "llama"}
    for value in NOT_OBEYED[key]:
        read_config(sound | {key: value})
    with pytest.raises(ModelError, match=f"config.json: {key} .*remove the key"):
        read_config(sound | {key: ["other"]})
