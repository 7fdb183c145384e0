"""The parity gate: an export is kept only if it answers like the trained model in the program that will use it.

strop's own decoder answers some prompts (`Reference`). A new process with the export's real consumer gets the same
conversations, many more to be rendered only, and the export, but nothing else from strop. It must arrive at the same
prompt ids, the same stop tokens, the same greedy answers and, on those answers, the same distributions over the next
token. `LIMITS` says how close is close enough; docs/exports.md has the measurements behind them.
"""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strop.errors import ParityError, RecipeError, of_file
from strop.exporting.parity.distance import Distance, Likeliest, distance
from strop.exporting.staged import write_json
from strop.readable import counted
from strop.run.durable import TEMPORARY

PARITY_FILE = "parity.json"
_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an export may deviate from the trained model.

    Attributes:
        kl: Largest mean KL divergence of the next token's distributions, in nats.
        top1: Smallest share of positions with the same most likely token.
        logits: Largest relative error of the logits, after subtracting each position's mean.
        tie: A greedy answer may diverge from strop's where strop preferred its token by less than this, in nats.
    """

    kl: float
    top1: float
    logits: float
    tie: float


LIMITS = {
    "adapter": Limits(kl=1e-4, top1=0.99, logits=0.005, tie=0.01),
    # bitsandbytes unpacks the same bits to bfloat16; strop computes in float32.
    "adapter-nf4": Limits(kl=1e-3, top1=0.98, logits=0.02, tie=0.05),
    "merged": Limits(kl=2e-3, top1=0.97, logits=0.05, tie=0.1),
    "gguf-f16": Limits(kl=1e-3, top1=0.98, logits=0.02, tie=0.05),
    "gguf-q8_0": Limits(kl=5e-3, top1=0.96, logits=0.15, tie=0.2),
    "gguf-q4_k_m": Limits(kl=0.15, top1=0.85, logits=0.6, tie=2.0),
}
"""Limits by kind of export when strop computes in float32, as on a CPU."""

_BFLOAT16 = Limits(kl=2e-3, top1=0.97, logits=0.05, tie=0.1)
"""The distance of two programs that compute the same weights in bfloat16: on an H200 the logits' error was 0.021."""

_ADVICE = {
    "gguf-q8_0": "\nEight bits per weight may be too few for this model; --quantise f16 loses nothing.",
    "gguf-q4_k_m": "\nFour bits per weight lose some of what was learned; --quantise q8_0 loses less, f16 nothing.",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as its consumer gets it, and in training.

    Attributes:
        messages: Of a conversation; None for other prompts.
        text: Of other prompts; None if there are only ids, of rows that are tokenised already.
        ids: In training.
        tools: That the conversation declares.
        documents: That go with it.
        template_kwargs: What else its chat template is given.
    """

    messages: list[dict[str, Any]] | None
    text: str | None
    ids: list[int]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """What strop's decoder answers.

    Attributes:
        questions: The first of them are answered; of all, prompt ids are compared.
        answers: Greedy answers, including the stop token if one was generated.
        logits: For each answer, (len(answer), V) float32: the logits that predict each of its tokens.
        stop_ids: All tokens that end an answer.
        dtype: torch's name of the type in which the logits were computed.
    """

    questions: list[Question]
    answers: list[list[int]]
    logits: list[NDArray[np.float32]]
    stop_ids: list[int]
    max_new_tokens: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Parity:
    """What the gate measured; written to parity.json."""

    kind: str
    consumer: str
    num_prompts: int
    num_answers: int
    num_positions: int
    same_prompts: int
    same_answers: int
    stop_ids: list[int]
    widest_parting: float
    distance: Distance
    limits: Limits


def limits_of(kind: str, dtype: str) -> Limits:
    """The limits for an export of a model that computed in `dtype`, by torch's name."""
    own = LIMITS[kind]
    if dtype == "float32":
        return own
    pairs = {name: (value, getattr(_BFLOAT16, name)) for name, value in asdict(own).items()}
    return Limits(**{name: min(pair) if name == "top1" else max(pair) for name, pair in pairs.items()})


class Consumer(NamedTuple):
    """A program that uses exports: its package, the module here that runs it, and the other packages this needs."""

    package: str
    module: str
    needs: tuple[str, ...] = ()


CONSUMERS = {
    "adapter": Consumer("peft", "huggingface"),
    "adapter-nf4": Consumer("peft", "huggingface", ("bitsandbytes",)),
    "merged": Consumer("transformers", "huggingface"),
    "gguf": Consumer("xllamacpp", "llama_cpp", ("gguf",)),
}
"""Consumers by kind of export, or by the first word of the kind."""


def _consumer(kind: str) -> Consumer:
    return CONSUMERS.get(kind) or CONSUMERS[kind.partition("-")[0]]


def require_consumer(kind: str) -> None:
    """Check, before any work, that the program to test the export with is installed.

    Args:
        kind: A key of `LIMITS`.

    Raises:
        RecipeError: It is not; the message says what to install.
    """
    consumer, to = _consumer(kind), kind.partition("-")[0]
    for package in (consumer.package, *consumer.needs):
        if importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"--to {to} needs {package} to test what it writes: pip install 'strop[export]' {package}"
            )


def check_parity(kind: str, folder: Path, base: Path | None, reference: Reference) -> Parity:
    """Load an export in a new process of its consumer and compare its answers with the trained model's.

    Args:
        kind: A key of `LIMITS`.
        folder: The export, still under its hidden name; parity.json is written to it.
        base: The base model folder, for an adapter.
        reference: The trained model's answers.

    Raises:
        ParityError: The export differs (the message lists how), or the consumer cannot load it.
    """
    told = _ask(kind, folder, base, reference)
    parity, faults = judge(kind, f"{_consumer(kind).package} {told['version']}", reference, told)
    if faults:
        raise ParityError(
            f"in {parity.consumer}, the {kind} export does not behave like the trained model, so it was not kept:\n  "
            + "\n  ".join(faults)
            + _ADVICE.get(kind, "")
        )
    write_json(folder / PARITY_FILE, asdict(parity))
    return parity


def judge(kind: str, consumer: str, reference: Reference, told: dict[str, Any]) -> tuple[Parity, list[str]]:
    """Compare a consumer's answers with the trained model's: the measurements, and every fault in words."""
    limits, questions = limits_of(kind, reference.dtype), reference.questions
    prompts = [got == want.ids for got, want in zip(told["prompts"], questions, strict=True)]
    faults = []
    if False in prompts:
        faults.append(_prompt_fault(questions, told["prompts"], prompts))
    if lost := sorted(set(reference.stop_ids) - set(told["stop_ids"])):
        faults.append(f"it does not stop at token {', '.join(map(str, lost))}, which ends answers in training")
    same = [got == want for got, want in zip(told["answers"], reference.answers, strict=True)]
    partings = [
        _parting(logits, want, got)
        for logits, want, got in zip(reference.logits, reference.answers, told["answers"], strict=True)
    ]
    if max(partings) > limits.tie:
        row = partings.index(max(partings))
        faults.append(
            f"greedy answer {row + 1} is {told['answers'][row][:12]}, expected {reference.answers[row][:12]}: they "
            f"diverge where the trained model preferred its token by {partings[row]:.3g} nats (limit {limits.tie:g})"
        )
    found = distance(reference.logits, told["next"])
    faults += _distance_faults(found, limits)
    parity = Parity(
        kind,
        consumer,
        len(questions),
        len(reference.answers),
        sum(map(len, reference.answers)),
        sum(prompts),
        sum(same),
        reference.stop_ids,
        max(partings),
        found,
        limits,
    )
    return parity, faults


def _distance_faults(found: Distance, limits: Limits) -> list[str]:
    faults = []
    if not found.kl <= limits.kl:  # written so that nan is a fault too
        faults.append(f"the KL divergence of the next token is {found.kl:.3g} nats (limit {limits.kl:g})")
    if not found.top1 >= limits.top1:
        faults.append(f"the most likely token is the same at {found.top1:.1%} of positions (limit {limits.top1:.0%})")
    if not found.logits <= limits.logits:
        faults.append(f"the relative error of the logits is {found.logits:.3g} (limit {limits.logits:g})")
    return faults


def _prompt_fault(questions: Sequence[Question], told: Sequence[Sequence[int] | str], same: Sequence[bool]) -> str:
    """How the first prompt differs that does; a consumer that refuses one says why in place of its ids."""
    first, differ = same.index(False), f"{same.count(False)} of {counted(len(same), 'prompt')} differ"
    want, got = questions[first].ids, told[first]
    if isinstance(got, str):
        return f"{differ}; it refuses prompt {first + 1}: {got}"
    at = next((i for i, pair in enumerate(zip(want, got, strict=False)) if pair[0] != pair[1]), len(want))
    return (
        f"{differ}; prompt {first + 1}'s ids differ from token {at} on: "
        f"{list(got[at : at + 6])}, expected {want[at : at + 6]} ({len(got)} tokens, {len(want)} in training): the "
        "tokenizer or chat template differs from training's"
    )


def _parting(logits: NDArray[np.float32], want: Sequence[int], got: Sequence[int]) -> float:
    """By how many nats the trained model preferred its own token where the answers diverge; 0 if they do not."""
    for position, (mine, other) in enumerate(zip(want, got, strict=False)):
        if mine != other:
            return float(logits[position, mine] - logits[position, other])
    return 0.0 if len(want) == len(got) else float("inf")


def _reason(stderr: str) -> str:
    """The first line that mentions an error, and the last line, which is how it ended."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no error message"]
    first = next((line for line in lines if "error" in line.lower()), lines[-1])
    return " | ".join(dict.fromkeys((first, lines[-1])))


def _refuse_full_disk(stderr: str, folder: Path) -> None:
    """A consumer that could not write its answers says nothing about the export.

    Raises:
        StorageError: That is what its last error was.
    """
    *_, number = ("0", *re.findall(r"\[Errno (\d+)\]", stderr))
    if int(number) in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        raise of_file(OSError(int(number), os.strerror(int(number))), folder)


def _next_tokens(file: Mapping[str, NDArray[Any]], answer: int) -> NDArray[np.float32] | Likeliest:
    if f"logits_{answer}" in file:
        return file[f"logits_{answer}"]
    return Likeliest(file[f"ids_{answer}"], file[f"logprobs_{answer}"])


def _ask(kind: str, folder: Path, base: Path | None, reference: Reference) -> dict[str, Any]:
    """Run the consumer on an export; it writes its answers to files in the hidden folder."""
    consumer = _consumer(kind)
    job, said, arrays = (folder / f"{TEMPORARY}{name}" for name in ("job.json", "said.json", "next.npz"))
    questions = [asdict(question) for question in reference.questions]
    names = ("answers", "stop_ids", "max_new_tokens", "dtype")
    rest = {name: getattr(reference, name) for name in names}
    paths = {"folder": folder, "base": base, "said": said, "next": arrays}
    write_json(job, {"kind": kind, "questions": questions, **rest, **{name: str(path) for name, path in paths.items()}})
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", f"strop.exporting.parity.{consumer.module}", str(job)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
        if child.returncode or not said.exists():
            _refuse_full_disk(child.stderr, folder)
            raise ParityError(
                f"{consumer.package} cannot use the export (exit {child.returncode}): {_reason(child.stderr)}"
            )
        with np.load(arrays, allow_pickle=False) as file:
            told = {"next": [_next_tokens(file, i) for i in range(len(reference.answers))]}
        return {**told, **json.loads(said.read_text(encoding="utf-8"))}
    except subprocess.TimeoutExpired as error:
        raise ParityError(
            f"{consumer.package} did not answer {counted(len(questions), 'prompt')} within an hour"
        ) from error
    finally:
        for path in (job, said, arrays):
            path.unlink(missing_ok=True)
