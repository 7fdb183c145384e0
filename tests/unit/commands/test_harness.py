"""A run under lm-evaluation-harness: the same figures as transformers gives, on requests and on a task of our own."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from strop.commands import harness
from strop.data.template import load_template
from strop.errors import RecipeError
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import load_oracle
from tiny_runs import write_model

CONTEXT = "The capital of France is"
PAIRS = [
    (CONTEXT, " Paris."),
    (CONTEXT, " Rome, or so"),
    ("", "Alone"),
    ("Two\nlines ", "of text"),
    (CONTEXT, " Paris."),
]
TEXTS = ["A whole text, read once.", " ".join(["many words"] * 400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> harness.StropLM:
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    session = SimpleNamespace(adapter=adapter, template=load_template(folder, "chat", ["alpaca"]))
    monkeypatch.setattr(harness, "load_tuned", lambda run, note: session)
    return harness.StropLM("run", tuned=False)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return load_oracle(folder, torch.float64)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def logprobs(oracle: Any, ids: list[int]) -> torch.Tensor:
    """log p of every token after the first, and of the likeliest one there."""
    with torch.no_grad():
        table = oracle(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return torch.stack([table[torch.arange(len(ids) - 1), ids[1:]], table.amax(-1)])


def test_loglikelihoods_are_transformers(model: harness.StropLM, oracle: Any) -> None:
    got = model.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(PAIRS, got, strict=True):
        whole = (
            model.tok_encode(context + continuation) if context else [model.eot_token_id, *model.tok_encode("Alone")]
        )
        count = len(whole) - (len(model.tok_encode(context.rstrip())) if context else 1)
        own, best = logprobs(oracle, whole)[:, -count:]
        assert logprob == pytest.approx(float(own.sum()), abs=1e-4)
        assert greedy == bool((own == best).all())
    assert got[0] == got[4] != got[1]


def test_what_greedy_decoding_writes_is_greedy(model: harness.StropLM) -> None:
    [answer] = model.generate_until(requests("generate_until", (CONTEXT, {"max_gen_toks": 3, "until": []})))
    ids = harness.generate(model._decoder, [model.tok_encode(CONTEXT)], model._template.stop_ids, 3)[0].ids
    [(_, greedy)] = model._loglikelihood_tokens([(None, model.tok_encode(CONTEXT), ids)])
    assert greedy
    assert answer == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_rolling_covers_every_token_once(model: harness.StropLM, oracle: Any) -> None:
    got = model.loglikelihood_rolling(requests("loglikelihood_rolling", *[(text,) for text in TEXTS]))
    ids = model.tok_encode(TEXTS[0])
    assert got[0] == pytest.approx(float(logprobs(oracle, [model.prefix_token_id, *ids])[0].sum()), abs=1e-4)
    ids, window = model.tok_encode(TEXTS[1]), model._max_length - 1
    assert window < len(ids) < 2 * window
    first = logprobs(oracle, [model.prefix_token_id, *ids[:window]])[0].sum()
    rest = logprobs(oracle, ids[-window - 1 :])[0][window - len(ids) :].sum()
    assert got[1] == pytest.approx(float(first + rest), abs=1e-3)


def test_until_cuts_and_sampling_is_refused(model: harness.StropLM) -> None:
    settings = {"max_gen_toks": 8, "until": []}
    [whole] = model.generate_until(requests("generate_until", (CONTEXT, settings)))
    end = whole[len(whole) // 2 :][:2]
    [cut] = model.generate_until(requests("generate_until", (CONTEXT, settings | {"until": [end]})))
    assert cut == whole[: whole.index(end)]
    with pytest.raises(RecipeError, match="sampling"):
        model.generate_until(requests("generate_until", (CONTEXT, {"do_sample": True, "temperature": 0.7})))


def test_tuned_is_another_model(model: harness.StropLM) -> None:
    base = model.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    tuned = harness.StropLM("run", tuned=True).loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    assert base != tuned


def test_a_chat_history_is_the_template_of_training(model: harness.StropLM) -> None:
    from strop.data.examples import Alpaca

    text = model.apply_chat_template([{"role": "user", "content": "Say 5."}])
    assert model.tok_encode(text) == model._template.encode_prompt(Alpaca("Say 5.", "", ""))


OWN = (
    "{% for m in messages %}[{{ m.role }}{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant{% endif %}"
)


@pytest.mark.parametrize("others", [{"system": "Be brief."}, {"chat_template": OWN}])
def test_a_chat_history_has_trainings_system_message_and_own_template(
    model: harness.StropLM, folder: Path, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from strop.data.examples import Conversation, Message

    template = load_template(folder, "chat", ["alpaca"], **others)
    monkeypatch.setattr(model, "_template", template)
    history = [("user", "Say 5."), ("assistant", "5"), ("user", "Say 6.")]
    text = model.apply_chat_template([{"role": role, "content": content} for role, content in history])
    assert text == template.prompt(Conversation(tuple(Message(*turn) for turn in history)))  # type: ignore[arg-type]
    begun = [*history, ("assistant", "It is")]
    going_on = model.apply_chat_template([{"role": r, "content": c} for r, c in begun], add_generation_prompt=False)
    assert going_on.endswith("It is")
    assert ("Be brief." in going_on) == ("system" in others)


def test_a_task_from_a_file(model: harness.StropLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"q": "Red or blue?", "choices": [" red", " blue"], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "colours.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate("strop", {"run": "run"}, tasks=["colours"], task_manager=manager, bootstrap_iters=0)
    assert found["results"]["colours"]["acc,none"] == 0.5  # the same answer to each, right for half


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "strop.commands.harness")
    with pytest.raises(RecipeError, match=r"strop\[lm-eval\]"):
        runpy.run_module("strop.commands.harness")
