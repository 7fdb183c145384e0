"""A separate process: transformers, or PEFT on transformers, loads an export as its users would and answers.

Called with the path of a job written by `strop.exporting.parity.gate`. Uses none of strop's model or tokenizer code.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def main(path: str) -> None:
    """Answer a job's questions and write down what was computed."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    model = _load(job)
    settings = transformers.GenerationConfig.from_pretrained(job["folder"])
    stop_ids = settings.eos_token_id
    prompts = [render(tokenizer, question) for question in job["questions"]]
    answers, arrays = [], {}
    for i, (question, answer) in enumerate(zip(job["questions"], job["answers"], strict=False)):
        told = prompts[i]
        prompt: list[int] = question["ids"] if isinstance(told, str) else told
        answers.append(_greedy(model, prompt, settings, job["max_new_tokens"]))
        ids = torch.tensor([question["ids"] + answer], device=model.device)
        with torch.inference_mode():
            logits = model(ids).logits[0, len(question["ids"]) - 1 : -1]
        arrays[f"logits_{i}"] = logits.float().cpu().numpy()
    np.savez(job["next"], **arrays)
    said = {
        "prompts": prompts,
        "answers": answers,
        "stop_ids": stop_ids if isinstance(stop_ids, list) else [stop_ids],
        "version": version("peft" if _is_adapter(job) else "transformers"),
    }
    Path(job["said"]).write_text(json.dumps(said), encoding="utf-8")


def _is_adapter(job: dict[str, Any]) -> bool:
    """Whether the export is an adapter, of either kind."""
    return bool(job["kind"].startswith("adapter"))


def _load(job: dict[str, Any]) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = job["base"] if _is_adapter(job) else job["folder"]
    dtype = getattr(
        torch, job["dtype"]
    )  # the type the trained model computed in; the weights are as stored in the files
    settings: dict[str, Any] = {"dtype": dtype}
    if job["kind"] == "adapter-nf4" and not hasattr(
        transformers.AutoConfig.from_pretrained(folder), "quantization_config"
    ):
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **settings)
    if _is_adapter(job):
        import peft

        model = peft.PeftModel.from_pretrained(model, job["folder"])
    return model.to(device).eval()


def render(tokenizer: Any, question: dict[str, Any]) -> list[int] | str:
    """The ids of a prompt, or why its chat template refuses it."""
    if question["messages"] is None:
        return question["ids"] if question["text"] is None else list(tokenizer(question["text"]).input_ids)
    given = {"tools": question["tools"], "documents": question["documents"], **question["template_kwargs"]}
    try:
        return list(
            tokenizer.apply_chat_template(question["messages"], add_generation_prompt=True, return_dict=False, **given)
        )
    except Exception as error:  # a template may raise anything
        return f"{type(error).__name__}: {error}"


def _greedy(model: Any, prompt: list[int], settings: Any, max_new_tokens: int) -> list[int]:
    """The answer with its stop token, under the export's own generation settings except sampling."""
    ids = torch.tensor([prompt], device=model.device)
    settings = transformers.GenerationConfig(
        eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id, max_new_tokens=max_new_tokens
    )
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return [int(token) for token in out[0, len(prompt) :]]


if __name__ == "__main__":
    main(sys.argv[1])
