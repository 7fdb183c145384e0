"""run.json as a type: what a run was made from, what was chosen for it, how far it is and what it came to.

`RunFolder` reads and writes it. The folder of an older strop lacks some keys, so every field has a default. Keys that
this strop does not know are kept when the file is written again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from strop.run.lenient import fit
from strop.run.progress import Progress

Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens a sample: extremes, percentiles, and a histogram; bin i holds lengths from edges[i] up to edges[i + 1]."""

    min: int
    median: float
    p95: float
    max: int
    edges: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """The held-out rows, counted.

    Attributes:
        rows: Samples.
        num_loss_tokens: Learned tokens among theirs.
        overlap_rows: Rows that are also training rows.
        overlap_prompts: Rows whose question is also in training.
    """

    rows: int | None = None
    num_loss_tokens: int | None = None
    overlap_rows: int | None = None
    overlap_prompts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """One of the sources of a run's rows.

    Attributes:
        name: As the recipe names it.
        format: The shape of its rows.
        columns: Those whose names are not the usual ones, such as `instruction: question`.
        samples: Each once.
        epoch_samples: As often as an epoch has them.
        epoch_share: Its part of an epoch's samples, from 0 to 1.
        epoch_token_share: Its part of an epoch's tokens.
    """

    name: str
    format: str | None = None
    columns: str | None = None
    samples: int | None = None
    epoch_samples: int | None = None
    epoch_share: float | None = None
    epoch_token_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """The rows of a run, as the audit counted them.

    Attributes:
        rows: Training rows that are used.
        samples: What they became; a row may give several.
        sources: Where they come from.
        found: What is out of the ordinary in the files, such as another encoding.
        unused: Rows with each key that is not used.
        num_tokens: Of all samples.
        num_loss_tokens: Learned tokens among those.
        skipped: Rows that were dropped, by kind of fault.
        truncated: Samples cut at model.max_seq_length.
        tokens_cut: Tokens that they lost.
        duplicates: Rows that repeat an earlier one.
        lengths: Of the samples.
        held_out: None where there are no held-out rows.
    """

    rows: int | None = None
    samples: int | None = None
    sources: tuple[SourceRows, ...] = ()
    found: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)
    num_tokens: int | None = None
    num_loss_tokens: int | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    truncated: int | None = None
    tokens_cut: int | None = None
    duplicates: int | None = None
    lengths: Lengths | None = None
    held_out: HeldOutRows | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a recipe takes on one kind of GPU, or why it cannot be trained there. `strop.forecast` makes it.

    Attributes:
        gpu: Modal's name, with its count if that is not 1, or the name of this machine's device.
        source: `measured` here, or `scaled` from published measurements.
        problem: Why it cannot be trained there, with all figures below 0; None if it can.
        precision: Of the frozen weights.
        layers: `fused` or `plain`.
        memory_gib: The GPU's memory.
        peak_gib: The most memory that torch reserves.
        max_tokens: Token budget of a microbatch.
        samples_per_second: During training steps.
        tokens_per_second: Tokens of the rows; a shared prefix counts once for each row.
        training_seconds: All steps and checkpoints.
        seconds: The container's whole time: start, training and evaluations.
        dollars: For `seconds`; None if there is no price.
        range: Factors on `seconds`, at best and at worst.
    """

    gpu: str
    source: Literal["measured", "scaled"]
    problem: str | None = None
    precision: str = ""
    layers: str = ""
    memory_gib: float = 0.0
    peak_gib: float = 0.0
    max_tokens: int = 0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    training_seconds: float = 0.0
    seconds: float = 0.0
    dollars: float | None = None
    range: tuple[float, float] = (1.0, 1.0)

    def rounded(self) -> "Estimate":
        """With four decimals, as files have it."""
        figures: dict[str, Any] = {key: value for key, value in asdict(self).items() if isinstance(value, float)}
        return replace(self, **{key: round(value, 4) for key, value in figures.items()})


@dataclass(frozen=True, slots=True)
class KeptEstimate:
    """plan.json: what `strop plan` measured before the run began.

    Attributes:
        device: Where, as the driver calls it.
        of: A digest of what was predicted: recipe, rows and strop's version.
        line: The prediction.
    """

    device: str
    of: str
    line: Estimate


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of the prediction beside what happened; `off` is predicted / actual - 1."""

    predicted: float
    actual: float
    off: float


def says_much(outcome: Mapping[str, Compared]) -> bool:
    """Whether a run was long enough for its plan's errors to mean something: a minute of training.

    Of a few seconds the start of the first step is most, and the plan is off by hundreds of percent.
    """
    training = outcome.get("training_seconds")
    return training is None or training.actual >= 60.0


@dataclass(frozen=True, slots=True)
class SpeedLimit:
    """How fast the GPU could go at its published rate, in products with frozen matrices alone.

    Attributes:
        gpu: Modal's name.
        seconds_per_token: For each token computed in the layers, forward and backward.
        seconds_per_learned_token: For each learned token, in the head.
    """

    gpu: str
    seconds_per_token: float
    seconds_per_learned_token: float


@dataclass(frozen=True, slots=True)
class AttemptCost:
    """What one attempt cost, as the manifest lists it.

    Attributes:
        attempt: Counted from 1.
        gpu: What was rented, such as H200 or H100:2.
        started: UTC, ISO 8601.
        dollars_per_second: Of the whole container.
        seconds: Billed so far.
        dollars: For those.
    """

    attempt: int
    gpu: str
    started: str
    dollars_per_second: float
    seconds: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What run.json holds. None or empty: not known yet, or written by an older strop.

    Attributes:
        run_id: The same for all attempts; trackers and endpoints name the run by it.
        created: When the first attempt began; UTC, ISO 8601.
        strop: Version. This and the next three can change a result in its last digits.
        python: Likewise.
        torch: Likewise.
        platform: Likewise.
        device: The driver's name of the device, or `cpu`.
        precision: How the frozen weights are held.
        ranks: How many GPUs divide each step.
        max_tokens_per_microbatch: Chosen for this device, and what is left of it after it ran out of memory.
        status: How the run is; see `RunFolder.status` for a process that was killed.
        attempts: Times that the run was started.
        fingerprints: What a later attempt must find unchanged, by what it is of.
        num_trainable: Trained parameters.
        num_steps: Updates from beginning to end.
        costs: Of each attempt, where it is billed.
        dollars: Of all attempts.
        format: The shape of the rows.
        template: The name of the training template.
        data: The rows, counted.
        sharing_ratio: The rows' tokens for each token computed.
        plan: What was predicted for this device.
        limit: What a step's throughput is a share of.
        notes: What was chosen, or had changed, when the last attempt began.
        lost: What of this folder's records was damaged or missing when the run was resumed.
        adapter: SHA-256 of each file of the adapter by name, but for the model card; once these are on the disk.
        recipe: SHA-256 of recipe.yaml as it was when the run began.
        records: At the end, SHA-256 of metrics.jsonl and samples.jsonl.
        progress: At the end.
        adapter_step: The step whose weights the adapter has, once it is saved: the last one, or the best.
        outcome: Figures of the plan beside what happened, by name.
        others: Keys without a field: versions of another engine's packages, or what a newer strop has written.
    """

    run_id: str | None = None
    created: str | None = None
    strop: str | None = None
    python: str | None = None
    torch: str | None = None
    platform: str | None = None
    device: str | None = None
    precision: str | None = None
    max_tokens_per_microbatch: int | None = None
    ranks: int | None = None
    status: Status | None = None
    attempts: int = 0
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    num_trainable: int | None = None
    num_steps: int | None = None
    costs: tuple[AttemptCost, ...] = ()
    dollars: float | None = None
    format: str | None = None
    template: str | None = None
    data: TrainingRows | None = None
    sharing_ratio: float | None = None
    plan: Estimate | None = None
    limit: SpeedLimit | None = None
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    adapter: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    records: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None
    adapter_step: int | None = None
    outcome: Mapping[str, Compared] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> "Manifest":
        """The contents of a run.json; values of another type than their field's are dropped."""
        known = {key: contents[key] for key in _KEYS if key in contents}
        others = {key: value for key, value in contents.items() if key not in _KEYS}
        return replace(fit(cls, known) or cls(), others=others)

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.json; what is not known has no key."""
        known = {key: value for key, value in asdict(self).items() if key in _KEYS and value not in (None, (), {})}
        return {**known, **self.others}


_KEYS = tuple(each.name for each in fields(Manifest) if each.name != "others")
