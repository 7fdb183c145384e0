"""A process of its own: llama.cpp loads an exported GGUF file as its users do and answers.

Called with the path of a job that `strop.exporting.parity` wrote. llama.cpp's own server (through xllamacpp, in this
process, on 127.0.0.1) renders the chat template, tokenises, computes and stops.
"""

import json
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

_LIKELIEST = 256
"""Tokens of each distribution that are compared one by one; asking for all takes a second a position."""

_FORCE = 1e4


def main(path: str) -> None:
    """Answer a job's questions and say what was computed."""
    import xllamacpp

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    longest = max(len(question["ids"]) for question in job["questions"]) + job["max_new_tokens"] + 8
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(job["folder"]).glob("*.gguf")))
    params.n_ctx = -(-longest // 256) * 256
    params.n_parallel = 1
    params.warmup = False
    params.use_jinja = True
    server = _Server(xllamacpp.Server(params))
    prompts = [server.prompt(question) for question in job["questions"]]
    answers = [server.greedy(prompt, job["max_new_tokens"]) for prompt in prompts]
    arrays: dict[str, Any] = {}
    for i, (question, answer) in enumerate(zip(job["questions"], job["answers"], strict=True)):
        rows = [server.next_token(question["ids"] + answer[:n]) for n in range(len(answer))]
        arrays[f"ids_{i}"] = np.array([[token for token, _ in row] for row in rows])
        arrays[f"logprobs_{i}"] = np.array([[logprob for _, logprob in row] for row in rows], dtype=np.float32)
    np.savez(job["next"], **arrays)
    said = {
        "prompts": prompts,
        "answers": answers,
        "stop_ids": [token for token in job["stop_ids"] if server.stops_at(prompts[0], token)],
        "version": version("xllamacpp"),
    }
    Path(job["said"]).write_text(json.dumps(said), encoding="utf-8")


class _Server:
    """llama.cpp's HTTP server."""

    def __init__(self, server: Any) -> None:
        self._server = server  # ends with this object

    def _post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.loads(answer.read())

    def prompt(self, question: dict[str, Any]) -> list[int]:
        """The ids that llama.cpp makes of a question by itself."""
        text = question["text"]
        if question["messages"] is not None:
            text = self._post("/apply-template", messages=question["messages"])["prompt"]
        return list(self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def greedy(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        """The answer with its stop token, asked for one token at a time so that none is held back."""
        answer: list[int] = []
        while len(answer) < max_new_tokens:
            token, stopped = self._next(prompt + answer)
            answer.append(token)
            if stopped:
                break
        return answer

    def _next(self, ids: list[int], **more: Any) -> tuple[int, bool]:
        told = self._complete(ids, n_probs=1, **more)
        return int(told["completion_probabilities"][0]["id"]), told["stop_type"] == "eos"

    def next_token(self, ids: list[int]) -> list[tuple[int, float]]:
        """The likeliest next tokens and their log-probabilities."""
        found = self._complete(ids, n_probs=_LIKELIEST)["completion_probabilities"][0]["top_logprobs"]
        return [(entry["id"], entry["logprob"]) for entry in found]

    def stops_at(self, ids: list[int], token: int) -> bool:
        """Whether llama.cpp ends an answer at this token, if it is what the model says next."""
        told = self._complete(ids, logit_bias=[[token, _FORCE]])
        return bool(told["stop_type"] == "eos")

    def _complete(self, ids: list[int], **more: Any) -> Any:
        settings = {"n_predict": 1, "temperature": 0.0, "samplers": [], "cache_prompt": True, "return_tokens": True}
        return self._post("/completion", prompt=ids, **settings, **more)


if __name__ == "__main__":
    main(sys.argv[1])
