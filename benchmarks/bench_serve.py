"""Tokens/s of `strop serve`'s worker at several numbers of callers, without HTTP: random prompts, random adapter.

    python benchmarks/bench_serve.py [--model FOLDER (else: Phi-3-mini's shape, random weights)] [--callers 1 16 64]
                                     [--prompt-tokens 200] [--max-new-tokens 128] [--share-base 0.5] [--json FILE]

Every caller asks `--rounds` times, again as soon as it is answered, so that requests join and leave a running batch.
`--share-base` of them ask the base model. "same" is the share of greedy answers that equal the answer to a single
caller: in bfloat16 products of another number of rows round differently, so near ties may fall the other way.
"""

import argparse
import queue
import threading
import time
from pathlib import Path

import torch

import report
from generation import random_phi3
from strop.evaluation.pool import Prompt
from strop.model.lora import LoraAdapter
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from strop.serving.requests import ApiError
from strop.serving.worker import GenerationJob, GenerationWorker, Piece

Answers = dict[tuple[int, int], str]
"""By caller and turn."""


def prompt_of(caller: int, turn: int, options: argparse.Namespace) -> Prompt:
    draws = torch.Generator().manual_seed(1000 * caller + turn)
    ids = torch.randint(10, 30_000, (options.prompt_tokens,), generator=draws).tolist()
    is_base = (caller * 0.618) % 1 < options.share_base
    return Prompt(ids, options.max_new_tokens, tuned=not is_base)


def call(
    worker: GenerationWorker, caller: int, options: argparse.Namespace, answers: dict[tuple[int, int], str]
) -> None:
    for turn in range(options.rounds):
        heard = queue.SimpleQueue[Piece | ApiError]()
        prompt = prompt_of(caller, turn, options)
        worker.submit(GenerationJob(prompt, (), lambda ids: " ".join(map(str, ids)), heard.put))
        answers[caller, turn] = ""
        while True:
            piece = heard.get()
            if isinstance(piece, ApiError):
                raise piece
            answers[caller, turn] += piece.text
            if piece.finish_reason:
                break


def measure(
    worker: GenerationWorker, callers: int, options: argparse.Namespace
) -> tuple[float, dict[tuple[int, int], str]]:
    answers: dict[tuple[int, int], str] = {}
    threads = [threading.Thread(target=call, args=(worker, i, options, answers)) for i in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder, or what a recipe's model_name_or_path takes")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--share-base", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = locate_model(options.model, note=print) if options.model else random_phi3()
    adapter = LoraAdapter(load_decoder(folder, dtype, device), LoraSection(), seed=1)
    adapter.flat.normal_(std=0.02, generator=torch.Generator(device).manual_seed(0))
    worker = GenerationWorker(adapter, frozenset())
    print(f"{folder}, {device}, {dtype}; {options.prompt_tokens} + {options.max_new_tokens} tokens")
    alone: Answers = {}
    for callers in options.callers:
        measure(worker, callers, argparse.Namespace(**vars(options) | {"rounds": 1}))  # compiles and captures
        seconds, answers = measure(worker, callers, options)
        alone = alone or answers
        shared = answers.keys() & alone.keys()
        same = sum(answers[key] == alone[key] for key in shared) / len(shared)
        tokens = len(answers) * options.max_new_tokens
        rate = tokens / seconds
        print(f"{callers:4} callers {tokens:8,} tokens {seconds:8.2f} s {rate:9,.1f} tokens/s   same {same:.1%}")
        figures = {"tokens": tokens, "seconds": seconds, "tokens_per_s": rate, "same": same}
        report.append(options.json, {"workload": "serve", "system": "strop", "setting": f"{callers} callers"} | figures)
    worker.join()


if __name__ == "__main__":
    main()
