"""What people and hubs give strop, mutilated: it is read, or refused by name, and nothing else happens.

Each kind of input has a corpus in tests/faults/corpus/: seeds, and every input that was once found to fail. Here a few
hundred edits of it are tried; `make fuzz` goes on for SOAK_MINUTES. HTTP bodies: tests/unit/serving/.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from fuzzing import edited, fuzz, seeds
from model_folders import write_model_folder
from strop.data.examples import Conversation, Fault, Message
from strop.data.sources import open_sources, read_examples
from strop.data.template import load_template
from strop.errors import DataError, ModelError, RecipeError
from strop.model.config import read_config
from strop.model.pretrained.headers import check_safetensors
from strop.model.pretrained.vet import vet_model_folder
from strop.recipe import DataFile, DataSection, load_recipe

SMOLLM2 = Path(__file__).parents[1] / "fixtures" / "smollm2-tokenizer"
JSON_WORDS = [
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"1.5", b'"x"'),
    *(b"9" * 20, b"9" * 5000, b"[" * 3000, b"{}", b"[]", b"\\ud800", b"\\u0000", b"\xff", b"\xef\xbb\xbf", b"\x00"),
]
YAML_WORDS = [
    *(b"\n", b"  ", b"- ", b": ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system "),
    *(b"null", b"~", b"yes", b".nan", b".inf", b"1e400", b"0x", b"2020-13-45", b"1_000", b"|", b">", b"'", b'"', b"#"),
    *(b"\t", b"\x85", b"\xe2\x80\xa8", b"\xff", b"\x00", b"%YAML 1.1\n", b"---\n", b"...\n", b"? ", b"=", b"train:\n"),
    *(b"-1", b"9" * 30, b"0.0000001", b"true", b"''", b"max_steps", b"data", b"model", b"lora", b"'\\ud800'"),
]
ROW_WORDS = [
    *JSON_WORDS,
    *(b"\n", b"\r\n", b";", b"\t", b"'", b'""', b'"a;b"', b'"role"', b'"content"', b'"user"', b'"assistant"'),
    *(b'"messages"', b'"instruction"', b'"output"', b'"text"', b'"tool_calls"', b'{"data":[', b"\xff\xfe", b"\x85"),
]
JINJA_WORDS = [
    *(
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{#",
        b"#}",
        b"-",
        b"|",
        b".",
        b"[",
        b"]",
        b"(",
        b")",
        b"'",
        b'"',
        b"~",
        b"\n",
        b"\x00",
    ),
    *(b"{% endfor %}", b"{% endif %}", b"{% else %}", b"{% raw %}", b"{% set messages = [] %}"),
    *(b"{% generation %}", b"{% endgeneration %}"),
    *(b"{% for m in messages %}", b"{% if messages %}", b"loop(messages)", b"self", b"caller()", b"{% include 'x' %}"),
    *(b"messages", b"content", b"none", b"9" * 5000, b" * 99999999", b"range(99999)", b"|tojson", b"|length", b" // 0"),
    *(b"raise_exception('no')", b"strftime_now('%Q')", b"''.__class__.__mro__", b"{{ x }}", b"\xff", b"\xed\xa0\x80"),
]


def refusal(read: Callable[[], object], *kinds: type[Exception]) -> str | None:
    """What is said against an input; None if it is read. Anything else that is raised goes through."""
    try:
        read()
    except kinds as error:
        return str(error)
    return None


def read_recipe(path: Path) -> None:
    assert refusal(lambda: load_recipe(str(path)), RecipeError) != ""


def read_rows(path: Path) -> None:
    """All readers and shapes, as the file's name says."""
    entry = DataFile(path=str(path))

    def read() -> None:
        for row in read_examples(open_sources(DataSection(train_file=(entry,)), (entry,))):
            assert not isinstance(row, Fault) or (row.origin.line > 0 and row.reason)

    said = refusal(read, DataError, RecipeError)
    assert said is None or path.name in said


def read_model_config(path: Path) -> None:
    """A folder with this config.json and weights that do not matter here."""
    folder = write_model_folder(path.with_suffix(""))
    (folder / "config.json").write_bytes(path.read_bytes())
    assert refusal(lambda: read_config(vet_model_folder(folder, needs_weights=False).settings), ModelError) != ""


def read_weights(path: Path) -> None:
    said = refusal(lambda: check_safetensors(path), ModelError)
    assert said is None or path.name in said


CHATS = [
    Conversation((Message("user", "Where is the mill?"), Message("assistant", "By the weir."))),
    Conversation((Message("system", "Be <b>brief</b>."), Message("user", ""), Message("assistant", "{{ no }}"))),
]


def read_template(path: Path) -> None:
    """Ids of two rows in a model's template, or a refusal; each rendering has two seconds."""

    def read() -> None:
        template = load_template(SMOLLM2, "chat", ["messages"], chat_template=path.read_text("utf-8", "replace"))
        for row in template.encode(CHATS):
            assert all(0 <= token < len(template.tokenizer) for sample in row for token in sample.input_ids)

    assert refusal(read, DataError, ModelError, RecipeError) != ""


KINDS: dict[str, tuple[Callable[[Path], None], list[bytes], int]] = {
    "recipe": (read_recipe, YAML_WORDS, 150),
    "rows": (read_rows, ROW_WORDS, 400),
    "config": (read_model_config, JSON_WORDS, 150),
    "safetensors": (read_weights, JSON_WORDS, 400),
    "template": (read_template, JINJA_WORDS, 25),
}
"""How a kind of input is read, the words of its format, and how many edits of its corpus are tried here."""


@pytest.mark.parametrize(("kind", "name"), [(kind, path.name) for kind in KINDS for path in seeds(kind)])
def test_what_is_kept(kind: str, name: str, tmp_path: Path) -> None:
    [kept] = [path for path in seeds(kind) if path.name == name]
    path = tmp_path / name
    path.write_bytes(kept.read_bytes())
    KINDS[kind][0](path)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_what_is_kept(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, words, few = KINDS[kind]
    for suffix in sorted({path.suffix for path in seeds(kind)}):
        texts = [path.read_bytes() for path in seeds(kind) if path.suffix == suffix]
        path = tmp_path / f"fuzzed{suffix}"

        def check(data: bytes, path: Path = path) -> None:
            path.write_bytes(data)
            read(path)

        fuzz(check, edited(texts, words), max(20, few * len(texts) // len(seeds(kind))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_control_a_reader_that_raises_is_caught(kind: str) -> None:
    def check(data: bytes) -> None:
        assert b"\xff" not in data

    with pytest.raises(AssertionError):
        fuzz(check, edited([path.read_bytes() for path in seeds(kind)], [b"\xff"]), 200)
