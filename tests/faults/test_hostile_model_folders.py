"""Model folders that are broken or want to run code: each is refused with its reason and runs nothing."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_folders import (
    TENSORS,
    edit_json,
    make_header,
    write_json,
    write_model_folder,
    write_raw_safetensors,
    write_safetensors,
    write_shards,
)
from strop.errors import ModelError
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.vet import vet_model_folder

SHARDS = {"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
DATA_BYTES = 4 * (16 * 8 + 8)


class _Bomb:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


def plant(folder: Path, sentinel: Path) -> None:
    """Python that would run if it were imported, under each name that configs below ask for."""
    for name in ("evil.py", "modeling_evil.py", "tokenization_evil.py", "setup.py", "__init__.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(sentinel)!r}).touch()\n")


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def tokenizer_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **changes)


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def header(change: Callable[[dict[str, Any]], Any], data_bytes: int = DATA_BYTES) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        described = make_header(TENSORS)
        described = change(described) or described
        write_raw_safetensors(folder / "model.safetensors", described, bytes(data_bytes))

    return spoil


def norm(**changes: Any) -> Callable[[Path], None]:
    return header(lambda described: described["model.norm.weight"].update(changes))


def shards(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_shards(folder, SHARDS | {"model.norm.weight": changes["norm"]})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(folder.parent / "executed")))


def missing_shard(folder: Path) -> None:
    write_shards(folder, dict(SHARDS))
    (folder / "b.safetensors").unlink()


def tensor_not_in_its_shard(folder: Path) -> None:
    write_shards(folder, SHARDS | {"lm_head.weight": "b.safetensors"})


def link_outside(folder: Path) -> None:
    write_safetensors(folder.parent / "elsewhere.safetensors", TENSORS)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def link_to_a_secret(folder: Path) -> None:
    (folder / "generation_config.json").symlink_to("/etc/passwd")


def link_loop(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")


def config_is_a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def config_is_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def only_a_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def header_twice(folder: Path) -> None:
    entry = '{"dtype":"F32","shape":[8],"data_offsets":[0,32]}'
    write_raw_safetensors(folder / "model.safetensors", f'{{"x":{entry},"x":{entry}}}'.encode(), bytes(32))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "auto_map in config.json": (config(auto_map={"AutoConfig": "evil.Config"}), "config.json: auto_map"),
    "auto_map deep in config.json": (config(text_config={"x": [{"auto_map": {}}]}), "config.json: auto_map"),
    "auto_map in tokenizer_config.json": (
        tokenizer_config(auto_map={"AutoTokenizer": ["tokenization_evil.T", None]}),
        "tokenizer_config.json: auto_map",
    ),
    "auto_map in generation_config.json": (
        lambda folder: write_json(folder / "generation_config.json", {"auto_map": {}}),
        "generation_config.json: auto_map",
    ),
    "custom_code": (config(custom_code=True), "custom_code"),
    "custom_pipelines": (config(custom_pipelines={"x": {"impl": "evil.P"}}), "custom_pipelines"),
    "trust_remote_code": (config(trust_remote_code=True), "trust_remote_code"),
    "a kernel from a hub (CVE-2026-4372)": (
        config(_attn_implementation_internal="evil/kernel"),
        "names a kernel to download",
    ),
    "a kernel, public spelling": (config(attn_implementation="evil/kernel:f"), "names a kernel to download"),
    "kernels as an object": (config(_attn_implementation={"": "evil/kernel"}), "names a kernel to download"),
    "newline in a nested model_type (CVE-2026-93348)": (
        config(text_config={"model_type": "x\nimport os"}),
        "model_type",
    ),
    "traversal in model_type": (config(model_type="../../evil"), "model_type"),
    "a number as model_type": (config(model_type=7), "model_type"),
    "no model_type": (text("config.json", "{}"), "model_type is missing"),
    "quantised": (config(quantization_config={"quant_method": "evil"}), "quantization_config"),
    "config.json missing": (remove("config.json"), "config.json: missing"),
    "config.json no JSON": (text("config.json", "{"), "cannot be read as JSON"),
    "config.json no UTF-8": (text("config.json", b'{"a": "\xff\xfe"}'), "cannot be read as JSON"),
    "config.json a list": (text("config.json", "[1]"), "contains a JSON list"),
    "config.json nested 100,000 deep": (text("config.json", "[" * 100_000), "cannot be read as JSON"),
    "config.json of 2 MiB": (text("config.json", '{"a": "' + "x" * (2 << 20) + '"}'), "the limit is"),
    "config.json with a key twice": (
        text("config.json", '{"model_type": "llama", "model_type": "evil"}'),
        "a key appears twice",
    ),
    "config.json a pipe": (config_is_a_pipe, "not a regular file"),
    "config.json a folder": (config_is_a_folder, "not a regular file"),
    "tokenizer class with a path": (tokenizer_config(tokenizer_class="evil.T"), "tokenizer_class"),
    "tokenizer class a list": (tokenizer_config(tokenizer_class=["T", "evil"]), "tokenizer_class"),
    "slow tokenizer only": (remove("tokenizer.json"), "tokenizer.json: missing"),
    "chat template of 1 MiB": (tokenizer_config(chat_template="x" * (1 << 20)), "a chat template of"),
    "named chat template of 1 MiB": (
        tokenizer_config(chat_template=[{"name": "default", "template": "x" * (1 << 20)}]),
        "a chat template of",
    ),
    "weights as a pickle": (only_a_pickle, "pickle"),
    "no weights": (remove("model.safetensors"), "no weights"),
    "a GGUF in a folder": (only_a_gguf, "name the .gguf file itself"),
    "weights an LFS pointer": (
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "git lfs pull",
    ),
    "weights empty": (text("model.safetensors", ""), "truncated"),
    "header longer than the file": (
        text("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"),
        "truncated",
    ),
    "header no JSON": (text("model.safetensors", struct.pack("<Q", 4) + b"evil"), "header is not JSON"),
    "header a list": (text("model.safetensors", struct.pack("<Q", 2) + b"[]"), "header is not a JSON object"),
    "a tensor twice": (header_twice, "a key appears twice"),
    "weights cut short": (header(lambda h: h, DATA_BYTES - 1), "truncated"),
    "bytes after the tensors": (header(lambda h: h, DATA_BYTES + 8), "belong to no tensor"),
    "overlapping tensors": (norm(data_offsets=[0, 32]), "a gap or an overlap"),
    "a gap between tensors": (norm(data_offsets=[520, 552]), "a gap or an overlap"),
    "negative offsets": (norm(data_offsets=[-32, 0]), "is invalid"),
    "offsets backwards": (norm(data_offsets=[544, 512]), "need 32"),
    "shape that does not fit": (norm(shape=[9]), "need 36"),
    "shape that overflows 64 bits": (norm(shape=[1 << 40, 1 << 40]), "its shape and type need"),
    "shape of fractions": (norm(shape=[8.0]), "is invalid"),
    "type I64": (norm(dtype="I64"), "has type 'I64'"),
    "type a list": (norm(dtype=["F32"]), "has type"),
    "extra key in an entry": (norm(_target_="os.system"), "nothing else"),
    "no tensors at all": (header(lambda h: h.clear(), 0), "contains no tensors"),
    "shard in another folder": (shards(norm="../b.safetensors"), "which is not a *.safetensors file"),
    "shard at an absolute path": (shards(norm="/etc/b.safetensors"), "which is not a *.safetensors file"),
    "shard a pickle": (shards(norm="b.bin"), "which is not a *.safetensors file"),
    "shard a number": (shards(norm=3), "which is not a *.safetensors file"),
    "shard missing": (missing_shard, "b.safetensors: missing"),
    "tensor not in its shard": (tensor_not_in_its_shard, "lacks 1 tensors"),
    "index without weight_map": (lambda f: write_json(f / "model.safetensors.index.json", {}), "weight_map"),
    "weights linked from outside": (link_outside, "outside the folder"),
    "a link to /etc/passwd": (link_to_a_secret, "outside the folder"),
    "a loop of links": (link_loop, "a broken link"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_with_its_reason_and_nothing_runs(case: str, tmp_path: Path) -> None:
    spoil, reason = HOSTILE[case]
    folder, sentinel = write_model_folder(tmp_path / "model"), tmp_path / "executed"
    plant(folder, sentinel)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        vet_model_folder(locate_model(str(folder)))
    assert caught.value.exit_code == 2
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not sentinel.exists()


def test_the_same_folder_unspoilt_passes(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    plant(folder, tmp_path / "executed")
    vet_model_folder(folder)


def test_what_is_planted_would_run(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    plant(folder, tmp_path / "imported")
    exec((folder / "evil.py").read_text())
    assert (tmp_path / "imported").exists()
    only_a_pickle(folder)
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "executed").exists()


def test_the_decoder_is_not_built_from_an_unvetted_folder(tmp_path: Path) -> None:
    import torch

    from strop.model.pretrained.weights import load_decoder

    folder = write_model_folder(tmp_path / "model")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ModelError, match="auto_map"):
        load_decoder(folder, torch.float32)
