"""Greedy generation by strop and by transformers: the same process, model folder, prompts and number of new tokens.

    python benchmarks/generation.py [--model FOLDER (else: Phi-3-mini's shape, random weights)]
                                    [--prompts 512] [--max-new-tokens 64] [--slots N] [--batch 32 128] [--stop]
                                    [--json FILE]

Prompts are the census rows' questions in the model's own template. transformers runs in batches of --batch prompts,
sorted by length and padded on the left, with sdpa, in the type that strop uses: bfloat16 on a GPU, float32 on a CPU.
Each system first runs once on a batch as a warm-up. tokens/s counts new tokens, stop tokens included, over wall time,
which includes reading the prompts. Without --stop, every answer has --max-new-tokens; with it, both systems end at the
model's stop tokens, which shows the cost of waiting for a batch's longest answer. "same" is the share of answers that
equal strop's token for token: in bfloat16, two correct programs diverge at near ties.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import report
import workloads
from strop.data.examples import Alpaca
from strop.data.readers import read_rows
from strop.data.template import Template, load_template
from strop.evaluation.generate import generate
from strop.model.decoder import Decoder
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.weights import load_decoder

System = Callable[[list[list[int]]], list[list[int]]]
"""Prompts -> each prompt's new tokens, a stop token included."""


def random_phi3() -> Path:
    folder = Path(tempfile.gettempdir()) / "strop-workloads" / "phi3-random"
    if not (folder / "config.json").exists():
        script = Path(__file__).with_name("random_checkpoint.py")
        subprocess.run([sys.executable, script, "--out", folder], check=True)
    return folder


def prompts_of(template: Template, count: int) -> list[list[int]]:
    prompts = []
    for row in read_rows(workloads.census_rows()):
        _, fields = row
        prompts.append(template.encode_prompt(Alpaca(fields["instruction"], fields.get("input") or "", "")))
        if len(prompts) == count:
            break
    return prompts


def strop_system(decoder: Decoder, stops: frozenset[int], max_new_tokens: int, slots: int | None) -> System:
    def answer(prompts: list[list[int]]) -> list[list[int]]:
        # An answer does not contain its stop token, which was generated all the same: -1 stands for it.
        answers = generate(decoder, prompts, stops, max_new_tokens, slots)
        return [[*a.ids, -1] if a.stopped else a.ids for a in answers]

    return answer


def transformers_system(model: Any, stops: frozenset[int], max_new_tokens: int, batch: int) -> System:
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0, eos_token_id=sorted(stops) or None
    )

    def cut(ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        return ids if end is None else [*ids[:end], -1]

    @torch.inference_mode()
    def answer(prompts: list[list[int]]) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(len(prompts[i]) for i in rows)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in rows], device=model.device)
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows], device=model.device
            )
            new = model.generate(ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
            answers |= {i: cut(row) for i, row in zip(rows, new, strict=True)}
        return [answers[i] for i in range(len(prompts))]

    return answer


def measure(system: System, prompts: list[list[int]], warm_up: int) -> tuple[list[list[int]], float]:
    system(prompts[:warm_up])
    started = time.perf_counter()
    answers = system(prompts)
    return answers, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder, or what a recipe's model_name_or_path takes")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = locate_model(options.model, note=print) if options.model else random_phi3()
    template = load_template(folder, "auto", ["alpaca"])
    stops = template.stop_ids if options.stop else frozenset()
    prompts = prompts_of(template, options.prompts)
    decoder = load_decoder(folder, dtype, device)
    system = strop_system(decoder, stops, options.max_new_tokens, options.slots)
    results = [("strop", f"{options.slots or 'auto'} slots", *measure(system, prompts, 32))]
    del decoder, system
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    for batch in options.batch:
        system = transformers_system(model, stops, options.max_new_tokens, batch)
        results.append(("transformers", f"batch {batch}", *measure(system, prompts, batch)))
    ours = results[0][2]
    print(f"{len(prompts)} prompts of {sum(map(len, prompts)) / len(prompts):.1f} tokens, {device}, {dtype}, {folder}")
    print(f"{'system':14}{'setting':12}{'new tokens':>12}{'seconds':>10}{'tokens/s':>10}{'same':>8}")
    for name, setting, answers, seconds in results:
        count = sum(map(len, answers))
        same = sum(a == b for a, b in zip(answers, ours, strict=True)) / len(ours)
        print(f"{name:14}{setting:12}{count:12,}{seconds:10.2f}{count / seconds:10,.0f}{same:8.1%}")
        figures = {"tokens": count, "seconds": seconds, "tokens_per_s": count / seconds, "same": same}
        report.append(options.json, {"workload": "generation", "system": name, "setting": setting} | figures)


if __name__ == "__main__":
    main()
