"""A checkpoint of a real model's exact shape with random weights, for use where the real one is not available.

python benchmarks/random_checkpoint.py --out /tmp/phi3 [--layout fused]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from strop.forecast import published
from strop.model.config import DecoderConfig, read_config
from strop.model.pretrained.weights import group_modules, module_path

PHI3_MINI = published.PHI3_MINI | {
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
LAYOUTS = {
    "split": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 2048},
    "fused": {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "sliding_window": 2047},
}
TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "phi3-tokenizer"


def shapes_of_layer(config: DecoderConfig, layer: int) -> dict[str, tuple[int, ...]]:
    prefix, width = f"model.layers.{layer}", config.hidden_size
    inputs = {"o_proj": config.num_heads * config.head_dim, "down_proj": config.intermediate_size}
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")
    }
    for group, modules in group_modules(config).items():
        for module, (first, last) in modules.items():
            shapes[f"{module_path(layer, group, module)}.weight"] = (last - first, inputs.get(module, width))
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], device: str) -> dict[str, torch.Tensor]:
    """Norms are 1, everything else is normal with deviation 0.02, as the models are initialised."""
    return {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (torch.randn(shape, device=device) * 0.02).to(torch.bfloat16).cpu()
        for name, shape in shapes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layout", choices=LAYOUTS, default="split")
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    raw = PHI3_MINI | LAYOUTS[arguments.layout] | {"num_hidden_layers": arguments.layers}
    config, out = read_config(raw), arguments.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    ends = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    shards = [ends | {"lm_head.weight": (config.vocab_size, config.hidden_size)}]
    for first in range(0, config.num_layers, 8):
        layers = range(first, min(first + 8, config.num_layers))
        shards.append({name: shape for layer in layers for name, shape in shapes_of_layer(config, layer).items()})
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(random_tensors(shapes, device), out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (out / "config.json").write_text(json.dumps(raw, indent=1))
    for file in TOKENIZER.iterdir():
        if file.name != "README.md":
            shutil.copyfile(file, out / file.name)


if __name__ == "__main__":
    main()
