"""A separate process: llama.cpp loads an exported GGUF file as its users would and answers.

Called with the path of a job written by `strop.exporting.parity.gate`. llama.cpp's own server (in this process, on
127.0.0.1) renders the chat template, tokenises, computes and stops.
"""

import json
import sys
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from strop.threads import processors

_LIKELIEST = 256
"""Tokens compared of each distribution; if asked for all, the server takes a second per position."""

_CERTAIN = 1e4  # added to a token's logit


class Next(NamedTuple):
    """The next token, whether it ends the answer, and the most likely tokens."""

    token: int
    ends: bool
    ids: list[int]
    logprobs: list[float]


def main(path: str) -> None:
    """Answer a job's questions and write down what was computed."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    asked = job["questions"][: len(job["answers"])]
    longest = max(len(question["ids"]) for question in asked) + job["max_new_tokens"]
    server = Server(next(Path(job["folder"]).glob("*.gguf")), longest)
    prompts = [server.prompt(question) for question in job["questions"]]
    answers: list[list[int]] = []
    arrays: dict[str, Any] = {}
    for i, (question, answer) in enumerate(zip(asked, job["answers"], strict=True)):
        forced = [server.next(question["ids"] + answer[:n]) for n in range(len(answer))]
        arrays[f"ids_{i}"] = np.array([told.ids for told in forced])
        arrays[f"logprobs_{i}"] = np.array([told.logprobs for told in forced], dtype=np.float32)
        prompt = prompts[i]
        answers.append(server.greedy(question["ids"] if isinstance(prompt, str) else prompt, job["max_new_tokens"]))
    np.savez(job["next"], **arrays)
    said = {
        "prompts": prompts,
        "answers": answers,
        "stop_ids": [token for token in job["stop_ids"] if server.ends_at(job["questions"][0]["ids"], token)],
        "version": version("xllamacpp"),
    }
    Path(job["said"]).write_text(json.dumps(said), encoding="utf-8")


class Server:
    """llama.cpp's HTTP server for one file; it stops when this object is deleted."""

    def __init__(self, file: Path, context: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = context + 1
        params.n_parallel = 1
        params.verbosity = 1  # errors only: the last lines say what went wrong
        params.warmup = False
        params.use_jinja = True
        params.cpuparams.n_threads = processors()
        self._server = xllamacpp.Server(params)
        self._letter = self._post("/tokenize", content="a")["tokens"][-1]
        self._known: dict[tuple[int, ...], Next] = {}

    def prompt(self, question: dict[str, Any]) -> list[int] | str:
        """The ids that llama.cpp itself makes of a question, or why it refuses it."""
        text = question["text"]
        if question["messages"] is not None:
            try:
                text = self._post("/apply-template", **_as_request(question))["prompt"]
            except urllib.error.HTTPError as error:
                return error.read(2000).decode(errors="replace")
        if text is None:
            return list(question["ids"])
        return list(self._post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def greedy(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        """The answer with its stop token."""
        answer: list[int] = []
        for _ in range(max_new_tokens):
            told = self.next(prompt + answer)
            answer.append(told.token)
            if told.ends:
                break
        return answer

    def next(self, ids: list[int]) -> Next:
        """What follows these tokens; cached."""
        key = tuple(ids)
        if key not in self._known:
            told = self._complete(ids, n_probs=_LIKELIEST)
            ends = told["stop_type"] == "eos"
            if "completion_probabilities" not in told:  # it withholds them if the token is half a character
                told = self._complete(ids, n_probs=_LIKELIEST, logit_bias=[[self._letter, _CERTAIN]])
            top = told["completion_probabilities"][0]["top_logprobs"]  # of the unmodified logits
            ids_of, logprobs = [int(other["id"]) for other in top], [float(other["logprob"]) for other in top]
            self._known[key] = Next(ids_of[0], ends, ids_of, logprobs)
        return self._known[key]

    def ends_at(self, ids: list[int], token: int) -> bool:
        """Whether llama.cpp ends an answer at this token when the model generates it."""
        told = self._complete(ids, logit_bias=[[token, _CERTAIN]])
        return bool(told["stop_type"] == "eos")

    def _complete(self, ids: list[int], **more: Any) -> Any:
        greedy = {"n_predict": 1, "samplers": ["top_k"], "top_k": 1}
        return self._post("/completion", prompt=ids, cache_prompt=True, **greedy, **more)

    def _post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.loads(answer.read())


def _as_request(question: dict[str, Any]) -> dict[str, Any]:
    """Messages and what goes with them as OpenAI's API has them."""
    given = {"documents": question["documents"]} if question["documents"] else {}
    tools = {"tools": question["tools"]} if question["tools"] else {}
    messages = list(map(_openais, question["messages"]))
    return {"messages": messages, "chat_template_kwargs": given | question["template_kwargs"], **tools}


def _openais(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(call | {"function": call["function"] | {"arguments": arguments}})
    return message | {"tool_calls": calls}


if __name__ == "__main__":
    main(sys.argv[1])
