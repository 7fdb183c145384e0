"""A recipe's engine, ready to train: strop's own on one rank or several, or Unsloth in a process of its own."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from strop.commands.load import load_model
from strop.errors import StorageError
from strop.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from strop.commands.attempt import Attempt
    from strop.commands.prepare import Prepared
    from strop.data.store import SampleStore
    from strop.evaluation.samples import Generate
    from strop.model.lora import LoraAdapter
    from strop.parallel.team import Team
    from strop.recipe import Recipe
    from strop.run.folder import RunFolder
    from strop.run.manifest import Estimate, SpeedLimit
    from strop.training.engine import Engine, StropEngine


@dataclass(frozen=True)
class Setup:
    """A recipe's engine, ready to train: how to evaluate its model, and what to record about it before the first step.

    Attributes:
        engine: Computes the steps.
        evaluate: Returns the held-out loss. Its argument may be called between microbatches, and may raise.
        generate: Returns a function that answers greedily. Its argument may be called between tokens, and may raise.
        sharing_ratio: The rows' tokens per computed token; None if unknown.
        plan: The prediction for this device.
        limit: The speed limit that a step's throughput is compared with.
        notes: Lines for the user and the manifest.
    """

    engine: Engine
    evaluate: Callable[[Callable[[], None]], float]
    generate: Callable[[Callable[[], None]], Generate]
    sharing_ratio: float | None = None
    plan: Estimate | None = None
    limit: SpeedLimit | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Member:
    """What every rank has of strop's own engine: its part of the steps, the evaluations and the answers."""

    engine: StropEngine
    team: Team
    held_out: SampleStore | None

    def evaluate(self, check_stop: Callable[[], None]) -> float:
        """The held-out loss of all ranks together."""
        from strop.evaluation.held_out_loss import held_out_loss
        from strop.evaluation.together import mean_loss

        engine, store = self.engine, self.held_out
        assert store is not None
        nll_of = engine.gradients.nll_of
        return mean_loss(
            self.team, lambda part: held_out_loss(engine.decoder, store, engine.max_tokens, check_stop, nll_of, part)
        )

    def generate(self, check_stop: Callable[[], None]) -> Generate:
        """Greedy answers of all ranks together."""
        from strop.evaluation.samples import greedily
        from strop.evaluation.together import divided

        return divided(self.team, greedily(self.engine.decoder, check_stop))


def join_in(prepared: Prepared, team: Team, note: Callable[[str], None], folder: RunFolder | None = None) -> Member:
    """Load the model and make this rank's engine, on all ranks at the same time.

    Args:
        prepared: The recipe, its model folder and data.
        team: The ranks.
        note: Told what was chosen.
        folder: Of rank 0: keeps the size of a microbatch if it has to be reduced.
    """
    from strop.training.engine import StropEngine

    recipe, data = prepared.recipe, prepared.data
    with team.agreed():
        adapter = load_model(recipe, prepared.model, note)
    most, keep = None, _keep_nothing
    if folder is not None:
        most, keep = _most_tokens(folder, recipe, adapter), partial(_keep_tokens, folder)
    return Member(StropEngine(adapter, data.train, recipe.train, most, keep, team), team, data.validation)


@contextmanager
def strop_setup(attempt: Attempt) -> Iterator[Setup]:
    """The setup of strop's own engine, on all ranks, with a prediction for the run."""
    from strop.forecast.estimate import PlannedRun
    from strop.forecast.prediction import prediction
    from strop.forecast.speed import limit_of
    from strop.training.ranks import LeadingEngine, told

    recipe, prepared, folder, team = attempt.recipe, attempt.prepared, attempt.folder, attempt.meeting.team
    data = prepared.data
    with attempt.reporter.waiting("loading the base model"):
        member = join_in(prepared, team, attempt.reporter.note, folder)
        own = member.engine
        sharing = own.microbatches.sharing()
        attempt.meeting.trains()
    job = PlannedRun(recipe, prepared.model.config, data.train, data.validation)
    try:
        expected = prediction(job, folder, own.device, attempt.meter) if team.size == 1 else None
    except StorageError as error:
        expected = None
        attempt.reporter.note(f"{error}, and is not compared with this run")
    limit = limit_of(job.shape, own.device, own.decoder.precision, team.size)
    yield Setup(
        LeadingEngine(own, team),
        lambda check_stop: told(team, "evaluate", partial(member.evaluate, check_stop))(),
        lambda check_stop: told(team, "generate", member.generate(check_stop)),
        sharing_ratio=round(sharing, 3),
        plan=expected.rounded() if expected else None,
        limit=limit,
        notes=[*_of_several(member, recipe.train.samples_per_step), own.microbatches.explain(sharing)],
    )


@contextmanager
def unsloth_setup(attempt: Attempt) -> Iterator[Setup]:
    """The setup of Unsloth in a worker; in the end its adapter is loaded into strop's own decoder and checked."""
    from strop.exporting.adapter import fill_adapter
    from strop.unsloth.engine import UnslothEngine, start_worker

    recipe, prepared, data = attempt.recipe, attempt.prepared, attempt.prepared.data

    def on_own_decoder(weights: dict[str, Tensor]) -> LoraAdapter:
        adapter = load_model(recipe, prepared.model, serving=True)
        fill_adapter(adapter, weights, "what Unsloth trained")
        return adapter

    with start_worker(recipe, prepared.model, data.train, data.validation, attempt.folder) as worker:
        attempt.reporter.note(f"Unsloth is starting in its own process; its output goes to {worker.log}")
        with attempt.reporter.waiting("Unsloth loads the base model"):
            engine = UnslothEngine(worker, data.train, recipe.train, on_own_decoder)
        yield Setup(engine, lambda check_stop: engine.evaluate(), lambda check_stop: engine.generate)


def _of_the_others(member: Member) -> Iterator[str]:
    """What the other GPUs of this machine do while one trains."""
    import torch

    if member.engine.decoder.device.type == "cuda" and (found := torch.cuda.device_count()) > 1:
        yield f"1 of {found} GPUs is used; `strop train RECIPE --gpus all` divides each step among them"


def _keep_tokens(folder: RunFolder, tokens: int) -> None:
    folder.update(lambda manifest: replace(manifest, max_tokens_per_microbatch=tokens))


def _keep_nothing(tokens: int) -> None:
    """Rank 0 keeps it."""


_BUSY_TOKENS = 8192
"""Computed tokens of a step from which an H200 works at nearly its full rate."""


def _of_several(member: Member, samples: int) -> Iterator[str]:
    """What several ranks do with a step, for the user, and whether it is enough work for their GPUs."""
    ranks = member.team.size
    if ranks == 1:
        yield from _of_the_others(member)
        return
    is_gpu = member.engine.decoder.device.type == "cuda"
    kind = "GPUs" if is_gpu else "ranks"
    yield (
        f"each step's {samples:,} samples are divided among {ranks} {kind}: it stays the recipe's step (transformers, "
        "Axolotl and LLaMA-Factory would give each GPU as many; so does train.batch_per_gpu=true)"
    )
    tokens = max(1, sum(batch.num_tokens for batch in member.engine.microbatches.of_step(0)))
    if is_gpu and tokens < _BUSY_TOKENS:
        enough = -(-samples * _BUSY_TOKENS // tokens)
        yield (
            f"a step is {tokens:,} computed tokens a GPU, which does not keep it busy: with "
            f"train.per_device_train_batch_size x train.gradient_accumulation_steps of about {enough:,} it would be"
        )


def _most_tokens(folder: RunFolder, recipe: Recipe, adapter: LoraAdapter) -> int | None:
    """The size to which this run reduced its microbatches on a GPU like this one; None if the recipe's has changed."""
    from strop.training.engine import device_name

    manifest = folder.manifest
    if manifest is None or manifest.device != device_name(adapter.decoder.device):
        return None
    began_with = load_recipe(str(folder.path / "recipe.yaml")).train.max_tokens_per_microbatch
    return manifest.max_tokens_per_microbatch if began_with == recipe.train.max_tokens_per_microbatch else None
