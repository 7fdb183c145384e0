"""What fits on this GPU: the resident size of models with real shapes, and how many tokens a microbatch may then hold.

    python benchmarks/limits.py [--precision float8] [--models phi3-mini llama3-8b qwen2.5-14b qwen2.5-32b]

Random weights, LoRA r=16 on all seven modules. Memory is measured like the trainer's own probe (`training.budget`): two
small microbatches in which every token is learned give a constant and an amount per token. "tokens" is what the free
memory then holds, which is also the longest possible sequence. Nothing of that length is run.
"""

import argparse
import gc

import torch

from random_checkpoint import LAYOUTS, PHI3_MINI
from strop.model.config import read_config
from strop.training.budget import peak_memory
from strop.training.gradients import choose_gradients
from throughput import random_adapter

QWEN = {"model_type": "qwen2", "vocab_size": 152064, "num_key_value_heads": 8, "max_position_embeddings": 131072}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
MODELS = {
    "phi3-mini": LAYOUTS["split"],
    "llama3-8b": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336},
    "qwen2.5-14b": QWEN
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40},
    "qwen2.5-32b": QWEN
    | {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40},
}
GIB = 2**30
FEW, MORE = 2048, 4096


def measure(name: str, precision: str) -> None:
    adapter = random_adapter(read_config(PHI3_MINI | MODELS[name]), precision)
    resident = torch.cuda.memory_allocated()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - resident
    billions = adapter.decoder.num_base_parameters / 1e9
    for recompute in (False, True):
        adapter.decoder.gradient_checkpointing = recompute
        gradients = choose_gradients(adapter)
        few, more = (peak_memory(gradients, adapter.decoder.device, tokens, FEW) - resident for tokens in (FEW, MORE))
        each = (more - few) / (MORE - FEW)
        tokens = int(MORE + (free - more) / each)
        kept = "recomputing" if recompute else "keeping all"
        print(
            f"{name:12} {billions:5.1f} B {kept:12} resident {resident / GIB:6.1f} GiB, "
            f"{each / 2**20:.2f} MiB a token, {tokens:,} tokens",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float8", choices=["float8", "bfloat16"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / GIB:.1f} GiB, {options.precision}")
    for name in options.models:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            measure(name, options.precision)
        except torch.OutOfMemoryError:
            print(f"{name:12} does not fit", flush=True)


if __name__ == "__main__":
    main()
