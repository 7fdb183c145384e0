"""The measurements that scaled predictions rest on, as the pages docs/lab/h200-*.md had them at this commit.

One H200, 2026-11-23, commit d4906ae, torch 2.11.0+cu130, Phi-3-mini's exact shape with random weights, LoRA r=16 on all
seven modules, `benchmarks/throughput.py`. What the steps compute was counted from the benchmark's rows.
"""

from dataclasses import dataclass

GPU = "H200"
DATE = "2026-11-23"
COMMIT = "d4906ae"

PRODUCTS = {"bfloat16": 728e12, "float8": 1479e12}
"""Frozen matrix products of 16,384 tokens, operations per second, in the same process and so in a short run; under
sustained load the card drops to about 670 and 1,300."""

PHI3_MINI = {
    "model_type": "mistral",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "sliding_window": 2048,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the published tables.

    Attributes:
        precision: Of the frozen weights.
        samples: Per step.
        samples_per_second: Measured.
        peak_gib: Reserved by torch, measured.
        microbatches: Per step.
        tokens: Computed per step, on average.
        learned: Learned positions per step, on average.
        pairs: Query-key pairs of attention in one layer per step, on average.
        largest: Tokens in the largest microbatch of all steps.
        checkpointing: Whether activations were recomputed.
    """

    precision: str
    samples: int
    samples_per_second: float
    peak_gib: float
    microbatches: int
    tokens: float
    learned: float
    pairs: float
    largest: int
    checkpointing: bool = False


FIGURES = {
    "census 128, float8": Figure("float8", 128, 463.0, 38.7, 1, 14306, 3073, 1.4086e6, 14433),
    "census 128, bfloat16": Figure("bfloat16", 128, 305.0, 38.5, 1, 14306, 3073, 1.4086e6, 14433),
    "census 8, float8": Figure("float8", 8, 282.1, 12.2, 1, 937, 189, 8.802e4, 996),
    "census 8, bfloat16": Figure("bfloat16", 8, 230.4, 12.2, 1, 937, 189, 8.802e4, 996),
    "long 13, float8": Figure("float8", 13, 36.98, 47.9, 1, 15937, 15925, 1.066e7, 18373),
    "census 128, bfloat16, nothing shared, all learned": Figure(
        "bfloat16", 128, 228.7, 50.2, 1, 19608, 19480, 1.521e6, 19707
    ),
    "census 8, NF4, recomputed, 8-bit moments": Figure("nf4", 8, 145.2, 3.4, 1, 943, 191, 8.802e4, 1015, True),
}
