"""What the fused kernels require of a GPU, as the compiler reports it; no GPU is needed.

    python benchmarks/kernel_resources.py [--rank 16] [--capability 90]

For each kernel, at Phi-3-mini's shape: instructions, registers per thread (a multiprocessor has 65,536), bytes spilled
to memory, shared memory, and how many programs of 128 threads the registers allow. On an H200 a program may use 232,448
bytes of shared memory.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from strop.ops.triton import attention_kernels, norm, rotary, swiglu, thin
from strop.ops.triton import kernels as plain

WARPS = 4
INTEGERS = (
    "rows width spans rows_each half num_heads up_start q_start k_start v_start row_stride out_stride total window"
)
FLOATS = "scaling eps"
FLOAT_POINTERS = "largest_parts product_parts squares_parts along_parts scale factor d_thin d_out_thin lse delta parts"
INT_POINTERS = "queries keys path positions"
TYPES = dict.fromkeys(INTEGERS.split(), "i32") | dict.fromkeys(FLOATS.split(), "fp32")
TYPES |= dict.fromkeys(FLOAT_POINTERS.split(), "*fp32") | dict.fromkeys(INT_POINTERS.split(), "*i32")
BYTES = "packed absmax mean square skip"
WIDE = (
    "levels code nested_absmax offset parameter grad mean_absmax square_absmax signed unsigned signed_mid unsigned_mid"
)
NUMBERS = "beta1 beta2 rest1 rest2 eps keep"
QUANTISED = dict.fromkeys(BYTES.split(), "*u8") | dict.fromkeys([*WIDE.split(), "rates"], "*fp32") | {"count": "i32"}
QUANTISED |= dict.fromkeys(NUMBERS.split(), "fp32")
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def kernels(rank: int) -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Each kernel with its constants and launch options, as the fused layers run it on float8 weights."""
    block = max(16, 1 << (rank - 1).bit_length())
    q, g = 4 * block, 2 * block
    rows = {"ROWS": 64, "CHUNK": norm.CHUNK, "SPAN": 512}
    heads = {"HEADS": 96, "H": 96, "HALF": 64, "REST": 0, "R": q, "BLOCK": block, "ROWS": 64, "HEADS_EACH": 8}
    both = {"R": g, "BLOCK": block, "OUT_R": block, "ROWS": 64}
    attention = {"GROUPS": 1, "H": 96, "H1": 64, "H2": 32, "WINDOWED": False}
    by_queries = {**attention, "QUERIES": 64, "KEYS": 32, "TREE": True}
    unfused = {"enable_fp_fusion": False}
    return {
        "advance": (norm._advance, {"HAS_BLOCK": True, "BLOCK_R": block, "R": q, **rows}, limit(128, q)),
        "norm backward, along": (norm._norm_backward_along, {"R": q, **rows}, {}),
        "norm backward": (norm._norm_backward, {"R": q, "NEXT_R": block, **rows}, limit(168, q)),
        "measure": (thin._measure, {"R": block, "ROWS": 64, "CHUNK": 128, "SPAN": 512}, {}),
        "finish q, k, v": (rotary._finish_qkv, heads, limit(rotary._REGISTERS, q)),
        "turn back": (rotary._turn_back, heads, {}),
        "swiglu": (
            swiglu._swiglu,
            {"CHUNK": swiglu._CHUNK, "SPAN": 512, **both},
            limit(swiglu._REGISTERS, g),
        ),
        "swiglu backward": (swiglu._swiglu_backward, {"SPLIT": True, "SLAB": swiglu._SLAB, **both}, {}),
        "attention": (attention_kernels.forward, {**by_queries, "R": block}, {"maxnreg": 128}),
        "attention, queries' gradient": (attention_kernels.backward_queries, by_queries, {"maxnreg": 128}),
        "attention, keys' gradients": (attention_kernels.backward_keys, {**attention, "QUERIES": 32, "KEYS": 64}, {}),
        "NF4 made dense": (plain._nf4_dequantise, {"BLOCK": 64, "BLOCKS": plain._BLOCKS, "NESTED": 256}, unfused),
        "8-bit AdamW": (plain._adamw_8bit, {"BLOCK": 256, "BLOCKS": plain._MOMENT_BLOCKS}, unfused),
    }


def limit(most: int, rank: int) -> dict[str, int]:
    registers = thin.registers(most, rank)
    return {} if registers is None else {"maxnreg": registers}


def compiled(kernel: Any, constants: dict[str, Any], options: dict[str, Any], capability: int) -> Any:
    special = TYPES | ({"scale": "fp32", "factor": "fp32"} if "lse" in kernel.arg_names else {})
    special |= QUANTISED if kernel in (plain._nf4_dequantise, plain._adamw_8bit) else {}
    special |= {"values": "*fp8e4nv"} if constants.get("QUANTISE", "CHUNK" in constants) else {}
    types = {name: "constexpr" if name in constants else special.get(name, "*bf16") for name in kernel.arg_names}
    values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    aligned = [i for i, kind in enumerate(types.values()) if kind == "i32" or kind.startswith("*")]
    source = ASTSource(kernel, types, values, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": WARPS, "num_stages": 3, **options})


def dump(binary: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(BINARIES / "cuobjdump"), option, file.name]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args()
    print(f"{'kernel':30} instructions  registers  spilled  shared memory  programs by registers")
    for name, (kernel, constants, launch) in kernels(options.rank).items():
        result = compiled(kernel, constants, launch, options.capability)
        usage = dump(result.asm["cubin"], "-res-usage")
        registers, spilled = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
        count = len(re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/", dump(result.asm["cubin"], "-sass"), re.MULTILINE))
        programs = 65536 // (WARPS * 32 * registers)
        print(f"{name:30} {count:12} {registers:10} {spilled:8} {result.metadata.shared:14,} {programs:10}")


if __name__ == "__main__":
    main()
