"""What each step computes: its samples, packed into microbatches."""

from dataclasses import dataclass

from strop.data.store import SampleStore
from strop.microbatch.order import num_steps, step_samples
from strop.microbatch.pack import Batch, pack
from strop.recipe import TrainSection

_MEASURED_STEPS, _MEASURED_SAMPLES = 16, 1024
"""Enough for two digits of the sharing ratio, and under 30 ms for a thousand short samples."""


@dataclass(frozen=True, slots=True)
class Microbatches:
    """The packed samples of every step; a pure function of what is said here.

    Attributes:
        store: The training samples.
        section: Batch, length and seed of the run.
        max_tokens: Tokens computed in a microbatch, at most.
        share: Compute a prefix that samples of a microbatch share once. Off where LoRA has dropout: it draws a mask
            for each token computed, so samples that share would get the same one.
        long_from: See `microbatch.tree.sort_by_prefix`.
    """

    store: SampleStore
    section: TrainSection
    max_tokens: int
    share: bool
    long_from: int | None

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        section = self.section
        return num_steps(len(self.store), section.samples_per_step, section.num_train_epochs, section.max_steps)

    def of_step(self, step: int) -> list[Batch]:
        """The microbatches of a step, counted from 0."""
        section = self.section
        indices = step_samples(
            step,
            len(self.store),
            section.samples_per_step,
            section.num_train_epochs,
            section.max_steps,
            section.seed,
        ).tolist()
        samples = [self.store[i] for i in indices]
        return pack(samples, indices, self.max_tokens, share=self.share, long_from=self.long_from)

    def first_steps(self) -> list[list[Batch]]:
        """The microbatches of as many steps as it takes to know what the others will be like."""
        steps = min(self.num_steps, _MEASURED_STEPS, 1 + _MEASURED_SAMPLES // self.section.samples_per_step)
        return [self.of_step(step) for step in range(steps)]

    def sharing(self) -> float:
        """Tokens of the samples for each token computed, measured on the first steps."""
        batches = [batch for step in self.first_steps() for batch in step]
        return sum(batch.num_sample_tokens for batch in batches) / sum(len(batch.input_ids) for batch in batches)

    def explain(self, sharing: float) -> str:
        """What a person should know about shared prefixes, given their measure."""
        if self.share:
            return f"shared prefixes: {sharing:.2f} tokens of the rows for each token computed"
        return "shared prefixes are not used: lora_dropout draws a mask for each token of each row"
