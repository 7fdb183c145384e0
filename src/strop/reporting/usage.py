"""How to load a trained model in the programs that people use, as commands and code to copy."""

import json
import re
from collections.abc import Mapping
from typing import Literal

from strop.reporting.text import Markdown, fenced

Form = Literal["adapter", "merged", "gguf"]

HERE = "PATH/TO/THIS/FOLDER"

_ON_BASE = """\
from peft import PeftModel
from transformers import {imports}

folder = {here}
{settings}model = AutoModelForCausalLM.from_pretrained({base}, dtype="auto"{options})
model = PeftModel.from_pretrained(model, folder)
model.generation_config = GenerationConfig.from_pretrained(folder)
"""
_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {here}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
"""
_ASK = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": "..."}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
answer = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""
_NF4 = 'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)\n'


def uses(
    form: Form,
    name: str,
    base: str,
    rank: int,
    nf4: bool,
    parsers: Mapping[str, str],
    gguf: str | None = None,
) -> list[tuple[str, Markdown]]:
    """Programs, and what to type or run there.

    Args:
        form: What is loaded.
        name: What to call the model.
        base: A hub id, or what stands for the base model's folder.
        rank: Least --max-lora-rank of vLLM's that the adapter fits.
        nf4: The adapter wants its base rounded to NF4.
        parsers: vLLM's options that name its readers of tool calls and reasoning, with their values.
        gguf: Name of the GGUF file that the base is, in the folder `base`.
    """
    readers = ["--enable-auto-tool-choice"] if "--tool-call-parser" in parsers else []
    readers += [f"{option} {value}" for option, value in parsers.items()]
    alias = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "tuned"
    ollama = f"ollama create {alias} -f Modelfile\nollama run {alias}"
    if form == "gguf":
        return [
            ("Ollama, in this folder", fenced(ollama, "sh")),
            ("llama.cpp", fenced("llama-server --jinja -m *.gguf", "sh")),
        ]
    exported = fenced(f"strop export RUN --to gguf\ncd RUN/gguf-q8_0\n{ollama}", "sh")
    last = ("Ollama, from the run that made this", exported)
    if form == "merged":
        return [
            ("transformers", fenced(_WHOLE.format(here=json.dumps(HERE)) + _ASK, "python")),
            ("vLLM", fenced(" ".join([f"vllm serve {HERE}", *readers]), "sh")),
            last,
        ]
    return [
        ("PEFT", fenced(_on_base(base, nf4, gguf) + _ASK, "python")),
        ("vLLM", fenced(_vllm(alias, base, rank, nf4, readers), "sh")),
        last,
    ]


def _on_base(base: str, nf4: bool, gguf: str | None) -> str:
    names = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if nf4 else []), "GenerationConfig"]
    file = f", gguf_file={json.dumps(gguf)}" if gguf else ""
    return _ON_BASE.format(
        imports=", ".join(names),
        here=json.dumps(HERE),
        base=json.dumps(base),
        settings=_NF4 if nf4 else "",
        options=file + (", quantization_config=nf4" if nf4 else ""),
    )


def _vllm(alias: str, base: str, rank: int, nf4: bool, readers: list[str]) -> str:
    """As `strop serve --on modal` starts it: tokenizer, template and stop tokens are training's."""
    parts = [
        f"vllm serve {base} --enable-lora --max-lora-rank {rank}",
        f"--lora-modules {alias}={HERE} --tokenizer {HERE}",
        f"--chat-template {HERE}/chat_template.jinja --generation-config {HERE}",
        *(["--quantization bitsandbytes"] if nf4 else []),
        *([" ".join(readers)] if readers else []),
    ]
    return " \\\n    ".join(parts)
