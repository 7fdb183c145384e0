"""Run folders written straight to disk, as a finished run leaves them, with any text in every field."""

import json
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from strop.run.records import TrainRecord


def interval(value: float, half: float = 0.1, count: int = 4) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "count": count}


def scores(nll: float, exact: float) -> dict[str, Any]:
    return {
        "nll": interval(nll),
        "perplexity": interval(nll + 1),
        "exact_match": interval(exact),
        "numeric_match": None,
    }


def answer(text: str, right: bool) -> dict[str, Any]:
    return {"text": text, "exact_match": right, "numeric_match": None, "token_f1": 0.5, "stopped": True}


def write_run(
    folder: Path, *, steps: int = 30, texts: Iterable[str] = ("plain",), questions: int = 4, **manifest: Any
) -> Path:
    """A finished run with `texts`, in turn, wherever a run folder holds text."""
    supply = cycle(texts)
    text: Callable[[], str] = lambda: next(supply)  # noqa: E731
    folder.mkdir(parents=True)
    _write_json(folder / "run.json", _manifest(text, steps) | manifest)
    recipe = {"name": text(), "model": {text(): text(), "r": 4}, "data": {"train_file": [text(), text()]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(steps))
    _write_json(folder / "evaluation.json", _evaluation(text, questions))
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for i in range(12):
            row = {"row": text() + str(i // 4), "question": text(), "reference": text(), "text": text()}
            file.write(json.dumps({"step": i, **row}) + "\n")
    for name in ("adapter", "checkpoints/step-00000030"):
        (folder / name).mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "checkpoints" / "step-00000030" / "manifest.json").write_text("{}", encoding="utf-8")
    return folder


def train_record(step: int, **figures: Any) -> TrainRecord:
    """A step's record, for a loss that falls."""
    known = {
        "loss": 1 / step,
        "learning_rate": 2e-4,
        "grad_norm": 0.523,
        "num_tokens": 100,
        "num_executed_tokens": 80,
        "num_loss_tokens": 20,
        "tokens_per_second": 1234.4,
        "samples_per_second": 12.34,
    }
    return TrainRecord(step=step, **known | figures)


def records(steps: int) -> Iterable[dict[str, Any]]:
    """What metrics.jsonl holds, for a loss that falls."""
    for step in range(1, steps + 1):
        yield {
            "kind": "train",
            "step": step,
            "loss": 2.0 / step,
            "learning_rate": 1e-3,
            "grad_norm": 0.5,
            "num_tokens": 1000,
            "num_executed_tokens": 800,
            "num_loss_tokens": 200,
            "tokens_per_second": 500.0,
            "samples_per_second": 4.0,
            "peak_memory_gib": 1.5,
            "dollars": step / 100,
        }
        if step % max(1, steps // 3) == 0:
            yield {"kind": "eval", "step": step, "eval_loss": 1.5 / step}


def _manifest(text: Callable[[], str], steps: int) -> dict[str, Any]:
    plan = {"gpu": text(), "source": "scaled", "problem": None, "training_seconds": 70.0, "dollars": 0.4}
    return {
        **{key: text() for key in ("run_id", "created", "strop", "python", "torch", "platform", "device", "precision")},
        **{key: text() for key in ("format", "template")},
        "status": "finished",
        "num_steps": steps,
        "fingerprints": {text(): text()},
        "notes": [text(), text()],
        "limit": {"gpu": text(), "seconds_per_token": 1e-3, "seconds_per_learned_token": 1e-3},
        "plan": plan | {"peak_gib": 2.0, "tokens_per_second": 450.0},
        "dollars": 0.3,
        "data": {
            "rows": 9,
            "num_tokens": 900,
            "num_loss_tokens": 90,
            "skipped": {text(): 3, text(): 1},
            "lengths": {"min": 1, "median": 2, "p95": 3, "max": 4, "edges": [0, 2, 4], "counts": [3, 6]},
            "held_out": {"rows": 4, "num_loss_tokens": 40, "overlap_rows": 1, "overlap_prompts": 2},
        },
        "progress": {"step": steps, "seconds": 60.0},
    }


def _evaluation(text: Callable[[], str], questions: int) -> dict[str, Any]:
    base, tuned = scores(1.5, 0.25), scores(0.5, 0.75)
    return {
        "num_rows": questions,
        "num_loss_tokens": 40,
        "num_generated": questions,
        "settings": {"max_new_tokens": 96, "numeric_tolerance": 0.0},
        "base": base,
        "tuned": tuned,
        "difference": scores(-1.0, 0.5),
        "groups": {text(): {"num_rows": 2, "base": base, "tuned": tuned}},
        "examples": [
            {
                **{key: text() for key in ("row", "group", "question", "reference")},
                "base": answer(text(), i % 4 == 0),
                "tuned": answer(text(), i % 4 != 1),
            }
            for i in range(questions)
        ],
    }


def _write_json(path: Path, contents: Any) -> None:
    path.write_text(json.dumps(contents), encoding="utf-8")
