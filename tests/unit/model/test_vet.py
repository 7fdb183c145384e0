from pathlib import Path

import pytest

from model_folders import TENSORS, edit_json, make_header, write_model_folder, write_safetensors, write_shards
from strop.errors import ModelError
from strop.model.pretrained.headers import check_safetensors
from strop.model.pretrained.locate import fingerprint_file, fingerprint_folder
from strop.model.pretrained.vet import vet_model_folder

SHARDS = {"model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model")


def test_an_honest_folder_passes_and_gives_its_config(folder: Path) -> None:
    assert vet_model_folder(folder).settings["model_type"] == "llama"


def test_honest_shards_pass(folder: Path) -> None:
    write_shards(folder, dict(SHARDS))
    vet_model_folder(folder)


def test_weights_without_a_tokenizer_pass(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    vet_model_folder(folder)


def test_the_layout_of_the_hub_cache_passes(tmp_path: Path) -> None:
    blobs = write_model_folder(tmp_path / "models--org--name" / "blobs")
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    vet_model_folder(snapshot)
    (snapshot / "generation_config.json").symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_text("{}")
    with pytest.raises(ModelError, match="outside the folder"):
        vet_model_folder(snapshot)


@pytest.mark.parametrize("value", ["sdpa", "eager", "flash_attention_2"])
def test_a_plain_attention_name_passes(folder: Path, value: str) -> None:
    edit_json(folder / "config.json", _attn_implementation=value)
    vet_model_folder(folder)


def test_a_chat_template_of_exactly_the_limit_passes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * (64 << 10))
    vet_model_folder(folder)
    (folder / "chat_template.jinja").write_text("x" * ((64 << 10) + 1))
    with pytest.raises(ModelError, match=r"chat_template\.jinja: a chat template of 65537 bytes"):
        vet_model_folder(folder)


def test_all_faults_are_said_at_once_with_their_files(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoConfig": "evil.Config"}, model_type="../x")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="os.system")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError) as caught:
        vet_model_folder(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5, lines
    for part in ("auto_map", "model_type", "os.system", "model.safetensors"):
        assert any(part in line for line in lines[1:]), part


def test_a_message_cannot_move_the_cursor(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama\x1b[2J\n")
    with pytest.raises(ModelError) as caught:
        vet_model_folder(folder)
    assert "\x1b" not in str(caught.value)


def test_tensor_names_come_back_from_a_header(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "BF16")
    assert check_safetensors(tmp_path / "x.safetensors").keys() == set(TENSORS)


def test_every_cut_of_a_weights_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"a": [3], "b": [2]})
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"^x\.safetensors: "):
            check_safetensors(file)


def test_the_library_reads_what_passes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    tensors = {"x": torch.zeros(3, 5), "empty": torch.zeros(0, 2), "half": torch.ones(7, dtype=torch.float16)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert check_safetensors(tmp_path / "x.safetensors").keys() == set(tensors)
    write_safetensors(tmp_path / "y.safetensors", TENSORS)
    assert set(load_file(tmp_path / "y.safetensors")) == set(make_header(TENSORS))


def test_another_checkpoint_has_another_fingerprint(folder: Path) -> None:
    before = fingerprint_folder(folder)
    assert fingerprint_folder(folder) == before
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    changed = fingerprint_folder(folder)
    edit_json(folder / "config.json", rope_theta=5e5)
    assert len({before, changed, fingerprint_folder(folder)}) == 3


def test_sampled_blocks_are_spread_over_a_large_file(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(4 << 20))
    before = fingerprint_file(file)
    seen = 0
    for start in range(0, 4 << 20, 128 << 10):  # a changed 128 KiB anywhere holds at least one sampled block
        data = bytearray(4 << 20)
        data[start : start + (128 << 10)] = b"\x01" * (128 << 10)
        file.write_bytes(data)
        seen += fingerprint_file(file) != before
    assert seen == 32
    file.write_bytes(bytes(4 << 20))
    assert fingerprint_file(file) == before
