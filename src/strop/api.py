"""The commands as Python functions: what `cli` prints and what a notebook calls are the same objects.

This is the one place that wires recipe, data, model, training and evaluation together.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import Interrupted, OutOfMemoryError, RecipeError, StropError
from strop.recipe import Recipe, differences, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from strop.data.audit import AuditReport
    from strop.data.dataset import Dataset
    from strop.data.examples import Origin
    from strop.data.formats import Format
    from strop.evaluate.chat import ChatSession
    from strop.evaluate.score import Evaluation
    from strop.model.lora import LoraAdapter
    from strop.run.console import Reporter
    from strop.run.folder import RunFolder
    from strop.train.loop import Trainer
    from strop.train.stop import StopSignals

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `strop init` names where the user names nothing: small enough for any machine."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's model folder and data, vetted and counted: what training reads and `strop check` reports on."""

    model_folder: Path
    data: Dataset
    report: AuditReport


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not; its layout is described in `strop.run.folder`."""

    path: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it was resolved when the run began.

        Raises:
            RecipeError: The folder is not a run's.
        """
        if not (self.path / "recipe.yaml").exists():
            raise RecipeError(f"{self.path} is not a run folder: it has no recipe.yaml (`strop runs` lists runs)")
        return load_recipe(str(self.path / "recipe.yaml"))

    @property
    def adapter_path(self) -> Path:
        """The PEFT adapter folder."""
        return self.path / "adapter"

    @property
    def manifest(self) -> dict[str, Any]:
        """The contents of run.json."""
        from strop.run.folder import RunFolder

        return RunFolder(self.path).manifest

    def metrics(self) -> list[dict[str, Any]]:
        """Every step and evaluation so far, in order."""
        from strop.run.metrics import read_metrics

        return read_metrics(self.path / "metrics.jsonl")


def starter_recipe(train_file: str, model: str | None = None) -> str:
    """The text of a first recipe for someone's rows.

    Raises:
        DataError: The rows cannot be found, or their shape is not known.
    """
    from strop.data.rows import detect_format, find_files
    from strop.recipe_file import starter_recipe as text

    detect_format(find_files([train_file]))
    return text(train_file, model or DEFAULT_MODEL)


def check(recipe: Recipe, note: Callable[[str], None] = lambda line: None) -> Prepared:
    """Read, tokenise and audit a recipe's data and see that LoRA finds its modules; needs no GPU.

    Args:
        recipe: From `load_recipe`.
        note: Told of what takes a while, such as converting a GGUF file.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
    """
    from strop.data.audit import refuse

    prepared = prepare(recipe, note)
    refuse(prepared.report)
    return prepared


def prepare(recipe: Recipe, note: Callable[[str], None] = lambda line: None) -> Prepared:
    """`check` without refusing what the report finds wrong."""
    from strop.data.audit import audit
    from strop.data.dataset import open_dataset
    from strop.model.families import read_config
    from strop.model.locate import locate_model
    from strop.model.lora import resolve_targets
    from strop.model.vet import vet_model_folder

    folder = locate_model(recipe.model.model_name_or_path, recipe.model.revision, note)
    config = read_config(vet_model_folder(folder))
    resolve_targets(config, recipe.lora.target_modules)
    if recipe.model.max_seq_length > config.max_positions:
        asked = recipe.model.max_seq_length
        raise RecipeError(f"model.max_seq_length={asked}: this model reads at most {config.max_positions} tokens")
    data = open_dataset(recipe.data, folder, recipe.model.max_seq_length, recipe.train.seed)
    return Prepared(folder, data, audit(data.train, data.template, data.validation))


def train(recipe: Recipe, reporter: Reporter | None = None) -> Run:
    """Train a recipe's adapter, from the newest checkpoint of its run folder if there is one.

    Args:
        recipe: From `load_recipe`.
        reporter: Told of everything that happens; silent by default.

    Returns:
        The run, with its adapter in `Run.adapter_path`. A finished run is returned as it is.

    Raises:
        StropError: See `strop.errors`; whatever was trained until then is in a checkpoint.
    """
    from strop.run.console import Reporter
    from strop.run.folder import RunFolder
    from strop.train.stop import StopSignals

    reporter = reporter or Reporter()
    folder = RunFolder(recipe.output_dir)
    with folder.claim():
        prepared = check(recipe, reporter.note)
        fingerprints = _fingerprints(prepared)
        if folder.manifest:
            _refuse_another_run(folder, recipe, fingerprints)
        if folder.status == "finished":
            reporter.note(f"{folder.path} is finished already; its adapter is {folder.adapter}")
            return Run(folder.path)
        adapter = _load_adapter(recipe, prepared.model_folder, reporter)
        stop = StopSignals()
        trainer = _trainer(recipe, prepared, adapter, folder, reporter, stop)
        _begin(folder, recipe, fingerprints, prepared, trainer)
        with stop, _status_kept(folder):  # until here a signal may end the process at once: nothing is lost
            _resume(trainer, folder, reporter)
            trainer.run()
            _write_adapter(recipe, prepared.model_folder, adapter, folder)
        folder.update_manifest(status="finished", progress=asdict(trainer.progress))
    return Run(folder.path)


def evaluate(run: Run, num_generated: int = 32, max_new_tokens: int = 96) -> Evaluation:
    """Put base and tuned side by side on the run's held-out rows, and keep the result in evaluation.json.

    Args:
        run: A finished run whose recipe holds out rows.
        num_generated: Answers to generate with each model; 0 for the loss alone.
        max_new_tokens: Longest answer.

    Raises:
        RecipeError: The run is not finished or holds nothing out.
    """
    from strop.evaluate.score import evaluate as score
    from strop.run.folder import RunFolder
    from strop.train.budget import wanted_tokens

    recipe = run.recipe
    # Answers are what is asked for here, so only they are scored, whatever was learned in training; and of the
    # training rows one is enough: to tokenise and audit the others again would take minutes where there are millions.
    held_out_answers = recipe.data.model_copy(update={"train_on": "completion", "max_train_samples": 1})
    prepared = prepare(recipe.model_copy(update={"data": held_out_answers}))
    if prepared.data.validation is None:
        raise RecipeError(
            f"{run.path} holds no rows out: set data.validation_file or data.validation_split_percentage, train again"
        )
    adapter = _tuned(run, prepared.model_folder)
    template, store = prepared.data.template, prepared.data.validation
    shown = range(0 if prepared.data.format == "text" else min(num_generated, len(store)))
    asked = {}
    if wanted := {store.origin(i) for i in shown}:
        specs = recipe.data.validation_file or recipe.data.train_file
        asked = {origin: text for origin, text in _questions(specs, prepared.data.format) if origin in wanted}
    result = score(
        adapter,
        store,
        [asked[store.origin(i)] for i in shown],
        lambda ids: str(template.tokenizer.decode(ids, skip_special_tokens=True)),
        template.stop_ids,
        wanted_tokens(adapter.decoder.device, int(store.lengths.max())),
        max_new_tokens,
    )
    RunFolder(run.path).write_evaluation(result.to_json())
    return result


def chat(run: Run, max_new_tokens: int = 256, temperature: float = 0.0) -> ChatSession:
    """Talk to the tuned model, in the template it was trained on.

    Raises:
        RecipeError: The run is not finished.
    """
    from strop.data.template import load_template
    from strop.evaluate.chat import ChatSession
    from strop.model.locate import locate_model

    recipe = run.recipe
    folder = locate_model(recipe.model.model_name_or_path, recipe.model.revision)
    adapter = _tuned(run, folder)
    template = load_template(folder, recipe.data.template, run.manifest["format"])
    return ChatSession(adapter, template, max_new_tokens, temperature)


def held_out_question(run: Run) -> str:
    """The question of the run's first held-out row.

    Raises:
        RecipeError: The recipe names no held-out file.
    """
    if not run.recipe.data.validation_file:
        raise RecipeError("this run has no data.validation_file to take a question from; use --prompt")
    for _, question in _questions(run.recipe.data.validation_file, run.manifest["format"]):
        return question
    raise RecipeError("no held-out row can be read; use --prompt")


def _questions(specs: Sequence[str], format: Format) -> Iterator[tuple[Origin, str]]:
    """Where each row comes from and what it asks."""
    from strop.data.prompts import question_of
    from strop.data.rows import Fault, find_files, read_examples

    for row in read_examples(find_files(specs), format):
        if not isinstance(row, Fault):
            yield row[0], question_of(row[1])


def _fingerprints(prepared: Prepared) -> dict[str, str]:
    from strop.model.fingerprint import fingerprint_folder

    return {
        "base model": fingerprint_folder(prepared.model_folder),
        "training data": prepared.data.train.fingerprint,
        "held-out data": prepared.data.validation.fingerprint if prepared.data.validation else "none",
    }


def _refuse_another_run(folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str]) -> None:
    from strop.run.folder import refuse_changes

    stored = load_recipe(str(folder.path / "recipe.yaml"))
    refuse_changes(folder.manifest.get("fingerprints", {}), fingerprints, differences(stored, recipe))


def _load_adapter(recipe: Recipe, model_folder: Path, reporter: Reporter, serving: bool = False) -> LoraAdapter:
    """The model with a fresh adapter; `serving` holds it as others will, so in bfloat16 where training takes float8."""
    import torch

    from strop.model.families import read_config
    from strop.model.lora import LoraAdapter
    from strop.model.precision import choose_device, choose_precision, why_not_fused
    from strop.model.vet import vet_model_folder
    from strop.model.weights import load_decoder

    device = choose_device()
    against = why_not_fused(read_config(vet_model_folder(model_folder)), recipe.lora, device)
    precision = choose_precision(recipe.model.precision, device, against)
    reporter.note(precision.reason)
    dtype = precision.dtype
    try:
        decoder = load_decoder(model_folder, dtype, device, precision.float8 and not serving)
        adapter = LoraAdapter(decoder, recipe.lora, recipe.train.seed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"the weights of {model_folder} do not fit in the GPU's memory in {dtype}") from error
    total = decoder.num_base_parameters + adapter.num_parameters
    share = adapter.num_parameters / total
    reporter.note(f"trainable parameters: {adapter.num_parameters:,} of {total:,} ({share:.2%})")
    return adapter


def _begin(
    folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str], prepared: Prepared, trainer: Trainer
) -> None:
    """Enter in the run folder what this attempt starts from."""
    import torch

    decoder = trainer.decoder
    if not folder.manifest:
        folder.write_recipe(recipe.to_yaml())
    changes = folder.begin_attempt(
        device=torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else "cpu",
        chosen={"precision": decoder.precision, "max_tokens_per_microbatch": trainer.max_tokens},
        fingerprints=fingerprints,
        num_trainable=trainer.adapter.num_parameters,
        num_steps=trainer.num_steps,
    )
    sharing = trainer.microbatches.sharing()
    for line in (*changes, *trainer.explain(), trainer.microbatches.explain(sharing)):
        trainer.reporter.note(line)
    folder.update_manifest(
        format=prepared.data.format,
        template=prepared.data.template.name,
        sharing_ratio=round(sharing, 3),
        data={
            "rows": len(prepared.data.train),
            "num_tokens": prepared.data.train.num_tokens,
            "num_loss_tokens": prepared.data.train.num_loss_tokens,
            "skipped": prepared.data.train.skipped,
        },
    )


def _trainer(
    recipe: Recipe,
    prepared: Prepared,
    adapter: LoraAdapter,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignals,
) -> Trainer:
    from strop.evaluate.loss import held_out_loss
    from strop.train.loop import Trainer

    def evaluate() -> float:
        assert prepared.data.validation is not None
        store, nll_of = prepared.data.validation, trainer.gradients.nll_of
        return held_out_loss(adapter.decoder, store, trainer.max_tokens, stop.check, nll_of).nll

    held_out = evaluate if prepared.data.validation else None
    trainer = Trainer(adapter, prepared.data.train, recipe.train, folder, reporter, held_out, stop.check)
    return trainer


def _resume(trainer: Trainer, folder: RunFolder, reporter: Reporter) -> None:
    from strop.run.checkpoint import load_newest

    checkpoint, rejected = load_newest(folder.checkpoints)
    for bad in rejected:
        reporter.note(f"checkpoint {bad.path.name} is not used: {bad.reason}")
    if checkpoint is not None:
        trainer.restore(checkpoint)
        reporter.note(f"going on from step {checkpoint.step} of {trainer.num_steps}")
    else:
        trainer.metrics.truncate_after(0)


def _write_adapter(recipe: Recipe, model_folder: Path, adapter: LoraAdapter, folder: RunFolder) -> None:
    from strop.export.adapter import save_adapter

    base = recipe.model.model_name_or_path
    if base.startswith("package:") or base.endswith(".gguf"):
        base = str(model_folder)  # PEFT can load the converted folder, not the package or the GGUF file
    save_adapter(adapter, folder.adapter, base, recipe.model.revision, model_folder)


def _tuned(run: Run, model_folder: Path) -> LoraAdapter:
    """The run's model with its trained adapter."""
    from strop.export.adapter import load_adapter
    from strop.run.console import Reporter

    if not (run.adapter_path / "adapter_config.json").exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
    adapter = _load_adapter(run.recipe, model_folder, Reporter(), serving=True)
    load_adapter(adapter, run.adapter_path)
    adapter.decoder.eval()
    return adapter


@contextmanager
def _status_kept(folder: RunFolder) -> Iterator[None]:
    """Enter in run.json how an attempt ended, without hiding why; an interruption says how to go on."""
    try:
        yield
    except StropError as error:
        interrupted = isinstance(error, Interrupted)
        with suppress(StropError):  # on a full disk this would fail too, and the first failure is the one to tell
            folder.set_status("interrupted" if interrupted else "failed")
        if interrupted:
            raise Interrupted(f"{error}. Go on with: strop train {folder.path}") from None
        raise
