"""A checkpoint's tensors against its config.json: names, shapes and types, all at once, before anything is read."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_folders import CONFIG, edit_json, write_json, write_model_folder, write_safetensors
from strop.errors import ModelError
from strop.model.config import read_config
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.tensors import STATE, checkpoint_shapes

Shapes = dict[str, list[int]]
Q, K, GATE, UP = (f"model.layers.0.{name}_proj.weight" for name in ("self_attn.q", "self_attn.k", "mlp.gate", "mlp.up"))
QKV, GATE_UP = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def write(folder: Path, change: Callable[[Shapes], Any] = lambda shapes: None, **config: Any) -> Path:
    write_model_folder(folder)
    edit_json(folder / "config.json", **config)
    expected = checkpoint_shapes(read_config(CONFIG | config))
    shapes = {name: list(shape) for name, shape in expected.items()}
    change(shapes)
    write_safetensors(folder / "model.safetensors", shapes)
    return folder


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 6},
    "phi3": {"model_type": "phi3"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_that_holds_what_its_config_says_passes(family: str, tmp_path: Path) -> None:
    ModelFolder.vetted(write(tmp_path, **FAMILIES[family]))


def test_files_of_old_tools_may_hold_the_frequencies_too(tmp_path: Path) -> None:
    ModelFolder.vetted(write(tmp_path, lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": [2]})))


def rows(name: str, count: int) -> Callable[[Shapes], None]:
    return lambda shapes: shapes[name].__setitem__(0, shapes[name][0] + count)


def both(*changes: Callable[[Shapes], Any]) -> Callable[[Shapes], None]:
    return lambda shapes: [change(shapes) for change in changes] and None


def transposed(name: str) -> Callable[[Shapes], None]:
    return lambda shapes: shapes[name].reverse()


PHI3 = FAMILIES["phi3"]
SPOILT: dict[str, tuple[Callable[[Shapes], Any], dict[str, Any], str]] = {
    "head and embedding with rows more": (both(rows(EMBEDDING, 7), rows(HEAD, 7)), {}, "vocab_size is 16"),
    "embedding with rows fewer": (rows(EMBEDDING, -3), {}, "embed_tokens"),
    "head with rows fewer": (rows(HEAD, -3), {}, HEAD),
    "rows moved from q to k": (both(rows(Q, -4), rows(K, 4)), {}, r"q_proj.weight has shape \[4, 8\]"),
    "rows moved from gate to up": (both(rows(GATE, 1), rows(UP, -1)), {}, r"gate_proj.weight has shape \[13, 8\]"),
    "a head too many": (rows(Q, 4), {}, r"by config.json it is \[8, 8\]"),
    "a merged matrix with a head too many": (rows(QKV, 4), PHI3, r"qkv_proj.weight has shape \[28, 8\]"),
    "a merged matrix with a row fewer": (rows(GATE_UP, -1), PHI3, r"gate_up_proj.weight has shape \[23, 8\]"),
    "split where it should be merged": (lambda s: s.update({Q: s.pop(QKV)}), PHI3, f"tensor {QKV} is missing"),
    "merged where it should be split": (lambda s: s.update({QKV: s.pop(Q)}), {}, f"tensor {Q} is missing"),
    "a norm of one number": (lambda s: s.update({NORM: [1]}), {}, r"norm.weight has shape \[1\]"),
    "a norm with an axis more": (lambda s: s.update({NORM: [1, 8]}), {}, r"norm.weight has shape \[1, 8\]"),
    "a scalar": (lambda s: s.update({NORM: []}), {}, r"norm.weight has shape \[\]"),
    "a transposed gate": (transposed(GATE), {}, r"gate_proj.weight has shape \[8, 12\]"),
    "a transposed embedding": (transposed(EMBEDDING), {}, r"embed_tokens.weight has shape \[8, 16\]"),
    "a layer more": (lambda s: s.update({"model.layers.1.mlp.up_proj.weight": [12, 8]}), {}, "none that config.json"),
    "a bias that is not asked for": (lambda s: s.update({Q.replace("weight", "bias"): [8]}), {}, "q_proj.bias"),
    "a bias that is asked for": (lambda s: s.pop(Q.replace("weight", "bias")), {"attention_bias": True}, "q_proj.bias"),
    "no head": (lambda s: s.pop(HEAD), {}, f"tensor {HEAD} is missing"),
    "another prefix": (lambda s: s.update({"embed_tokens.weight": s.pop(EMBEDDING)}), {}, "embed_tokens"),
    "empty": (lambda s: s.update({Q: [0, 8]}), {}, r"q_proj.weight has shape \[0, 8\]"),
    "layers more than the file has": (lambda s: None, {}, "tensor model.layers.1.self_attn.q_proj.weight is missing"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_weights_of_another_model_are_refused(case: str, tmp_path: Path) -> None:
    change, config, words = SPOILT[case]
    folder = write(tmp_path, change, **config)
    if case.startswith("layers more"):
        edit_json(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=words) as caught:
        ModelFolder.vetted(folder)
    assert str(folder) in str(caught.value)


def test_all_faults_are_counted_and_the_first_are_said(tmp_path: Path) -> None:
    folder = write(tmp_path)
    edit_json(folder / "config.json", hidden_size=4, head_dim=4)
    with pytest.raises(ModelError, match=r"\(12 faults\)") as caught:
        ModelFolder.vetted(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert lines[-1].endswith("and 6 more")


def test_a_billion_layers_are_refused_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path)
    edit_json(folder / "config.json", num_hidden_layers=4096)
    with pytest.raises(ModelError, match=r"\(36855 faults\)"):  # 4,095 layers of nine tensors
        ModelFolder.vetted(folder)
    edit_json(folder / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="num_hidden_layers 1000000000 must be"):
        ModelFolder.vetted(folder)


def with_head(folder: Path, head: float, dtype: str = "<f") -> Path:
    """A tied model with a head in its file whose last number is `head`; that of the embedding is 0."""
    write(folder, lambda shapes: shapes.update({HEAD: [16, 8]}), tie_word_embeddings=True)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = struct.pack(dtype, head)
    file.write_bytes(data)
    return folder


def test_a_tied_head_may_be_in_the_file_only_if_it_is_the_embedding(tmp_path: Path) -> None:
    ModelFolder.vetted(with_head(tmp_path / "same", 0.0))
    with pytest.raises(ModelError, match=r"tie_word_embeddings is true, but lm_head\.weight is not"):
        ModelFolder.vetted(with_head(tmp_path / "other", 0.5))


def test_metadata_that_is_no_object_of_texts_is_refused(tmp_path: Path) -> None:
    for metadata in ([], {"format": 1}, "pt", None):
        folder = write(tmp_path)
        file = folder / "model.safetensors"
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps({"__metadata__": metadata} | json.loads(data[8 : 8 + size])).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        with pytest.raises(ModelError, match="__metadata__ must be an object of texts"):
            ModelFolder.vetted(folder)


def test_two_files_that_programs_choose_between_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    whole = folder / "model.safetensors"
    names = checkpoint_shapes(read_config(CONFIG))
    index = folder / "model.safetensors.index.json"
    write_json(index, {"weight_map": dict.fromkeys(names, "model.safetensors")})
    ModelFolder.vetted(folder)
    (folder / "a.safetensors").write_bytes(whole.read_bytes())
    write_json(index, {"weight_map": dict.fromkeys(names, "a.safetensors")})
    with pytest.raises(ModelError, match="beside an index of other files"):
        ModelFolder.vetted(folder)
    whole.rename(folder / "b.safetensors")
    write_json(index, {"weight_map": dict.fromkeys(names, "a.safetensors") | {NORM: "b.safetensors"}})
    with pytest.raises(ModelError, match=r"12 of its tensors are in another file too"):
        ModelFolder.vetted(folder)


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def quantised(folder: Path, packed: int = 32, shape: Any = (8, 8), name: str = Q, drop: str = "") -> Path:
    """A folder with one matrix in NF4; the bytes are zeros but for its description."""
    write(folder, quantization_config=NF4)
    state = json.dumps({"shape": shape, "blocksize": 64}).encode()
    shapes = {each: list(shape) for each, shape in checkpoint_shapes(read_config(CONFIG)).items()}
    entries: list[tuple[str, str, list[int], bytes]] = [
        (each, "F32", size, bytes(4 * size[0] * (size[1] if len(size) > 1 else 1)))
        for each, size in shapes.items()
        if each != name
    ]
    entries.append((name, "U8", [packed, 1], bytes(packed)))
    for suffix, dtype, data in (
        ("absmax", "F32", bytes(4)),
        ("quant_map", "F32", bytes(64)),
        (STATE, "U8", state),
    ):
        if suffix != drop:
            entries.append((f"{name}.{suffix}", dtype, [len(data) // (4 if dtype == "F32" else 1)], data))
    header, end, body = {}, 0, b""
    for each, dtype, size, data in entries:
        header[each] = {"dtype": dtype, "shape": size, "data_offsets": [end, end + len(data)]}
        end, body = end + len(data), body + data
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    return folder


def test_a_matrix_in_nf4_passes(tmp_path: Path) -> None:
    ModelFolder.vetted(quantised(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (16, 4)}, r"q_proj.weight has shape \[16, 4\], but by config.json it is \[8, 8\]"),
        ({"packed": 31}, "has 31 bytes"),
        ({"shape": "8x8"}, "describes nothing"),
        ({"shape": None}, "describes nothing"),
        ({"drop": "absmax"}, "absmax is missing"),
        ({"drop": STATE}, f"{STATE} is missing"),
        ({"name": EMBEDDING, "packed": 64, "shape": (16, 8)}, "embed_tokens.weight is quantised"),
        ({"name": NORM, "packed": 4, "shape": (8,)}, "norm.weight is quantised"),
    ],
)
def test_a_matrix_in_nf4_of_another_model_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        ModelFolder.vetted(quantised(tmp_path, **changes))
