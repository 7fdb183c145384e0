"""Who may import whom, when, and what stays cheap to import."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import strop
from source_imports import Import, SourceTree, When
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "strop"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "gpus": {"errors"},
    "ops": {"errors", "microbatch.tree"},
    "recipe": {"errors", "gpus"},
    "resolve": {"errors"},
    "data": {"recipe", "resolve", "errors"},
    "microbatch": {"data", "ops", "recipe", "errors"},
    "model": {"microbatch", "ops", "recipe", "resolve", "errors", "gpus"},
    "run": {"recipe", "resolve", "errors"},
    "training": {"data", "microbatch", "model", "fused", "ops", "run", "recipe", "errors", "gpus"},
    "fused": {"microbatch", "model", "ops", "training", "errors"},
    "evaluation": {"data", "microbatch", "model", "ops", "run", "recipe", "errors"},
    "reporting": {"run", "errors"},
    "modal_runs": {"data", "model", "run", "recipe", "resolve", "errors", "gpus"},
    "forecast": {"data", "microbatch", "model", "training", "modal_runs", "run", "recipe", "errors", "gpus"},
    "unsloth": {"data", "microbatch", "model", "run", "training", "recipe", "errors"},
    "serving": {"data", "model", "evaluation", "recipe", "errors"},
    "exporting": {"data", "model", "ops", "run", "recipe", "resolve", "errors"},
    "commands": {
        *("data", "model", "training", "run", "evaluation", "reporting", "modal_runs", "forecast", "unsloth"),
        *("serving", "exporting", "recipe", "resolve", "errors", "gpus", "ops"),
    },
    "": {"commands", "recipe", "errors"},
    "cli": {"", "commands", "recipe", "run", "errors"},
    "__main__": {"cli"},
}
"""What each folder or file of src/strop may import, from the bottom up; "" is strop/__init__.py. A dotted name allows
one module of a folder."""

UPWARDS = {("ops", "microbatch.tree"), ("training", "fused")}
"""What is imported from further down the table: the attention kernels know the tree of prefixes, and training chooses
between two ways to compute gradients, of which one is `fused`."""

ONLY_IN = {
    "modal": {"modal_runs"},
    "triton": {"ops"},
    "typer": {"cli", "commands"},
    "transformers": {"data.tokenizer", "data.chat_template", "exporting.parity.huggingface", "unsloth.worker"},
    "peft": {"exporting.parity.huggingface", "unsloth.worker"},
    "trl": {"unsloth.worker"},
    "unsloth": {"unsloth.worker"},
    "lm_eval": {"commands.harness"},
    "xllamacpp": {"exporting.parity.llama_cpp", "exporting.gguf.quantise"},
    "starlette": {"serving"},
    "uvicorn": {"serving.server"},
    "huggingface_hub": {"resolve", "commands", "reporting.card"},
}
"""Libraries that one place knows."""

HEAVY = {
    *("torch", "numpy", "transformers", "modal", "pyarrow", "gguf", "peft", "xllamacpp", "starlette", "uvicorn"),
    *("lm_eval", "trl", "unsloth", "huggingface_hub"),
}
"""Libraries that take a second to import, or need not be installed. `strop --help` and a faulty recipe wait for none of
them, so a command imports what needs one when it is called."""

IN_PROCESS = {"strop.commands.harness"}
"""Commands whose classes derive from a heavy library's; strop/cli.py imports them when they are called."""

LATE: dict[str, dict[str, str]] = {
    "strop.data.readers": {"pyarrow": "optional: for Parquet files"},
    "strop.data.tokenizer": {"transformers": "two seconds; a run whose rows are in the cache needs none of its models"},
    "strop.evaluation.answers_file": {"pyarrow": "optional: for Parquet files"},
    "strop.exporting.gguf.file": {"gguf": "optional"},
    "strop.exporting.gguf.quantise": {"gguf": "optional"},
    "strop.exporting.gguf.shape": {"gguf": "optional"},
    "strop.exporting.parity.huggingface": {"peft": "optional; two seconds, in a process of its own"},
    "strop.exporting.parity.llama_cpp": {"xllamacpp": "optional"},
    "strop.model.checkpoint.gguf": {
        "gguf": "optional",
        "numpy": "a model's folder is located before anything heavy is imported",
        "torch": "a model's folder is located before anything heavy is imported",
    },
    "strop.modal_runs.follow": {"modal": "optional"},
    "strop.modal_runs.launch": {"modal": "optional", "strop.modal_runs.modal_app": "imports modal, which is optional"},
    "strop.modal_runs.prices": {"modal": "optional: stored prices do without"},
    "strop.modal_runs.pull": {
        "modal": "optional",
        "strop.run.checkpoint": "imports torch, and a launcher can do without it until it checks a checkpoint",
    },
    "strop.modal_runs.serving": {
        "modal": "optional",
        "strop.modal_runs.modal_app": "imports modal, which is optional",
        "strop.modal_runs.serving_app": "imports modal, which is optional",
    },
    "strop.modal_runs.upload": {"modal": "optional"},
    "strop.ops.attention": {"strop.ops.fused.attention": "imports triton, which is there on GPU machines only"},
    "strop.ops.dispatch": {"strop.ops.kernels": "imports triton, which is there on GPU machines only"},
    "strop.reporting.verdict": {"numpy": "a launcher reads a run's facts without it"},
    "strop.resolve": {"huggingface_hub": "half a second, and only to name or fetch what is not a path"},
    "strop.run.folder": {"strop.run.checkpoint": "imports torch, and a page on a run does not wait for it"},
    "strop.training.gradients": {"strop.fused.capture": "imports triton, which is there on GPU machines only"},
    "strop.unsloth.worker": dict.fromkeys(
        ("unsloth", "trl", "peft", "transformers", "pyarrow", "datasets"),
        "optional, and unsloth has to be imported before the others",
    ),
}
"""Imports inside functions, of a library or of a module of ours, each with its reason. Any other stands at the top."""

# --------------------------------------------------------------------------------------- to be empty before long

OLD = {"api", "cli", "present"}
"""Packages that make way for `commands` and cli.py; no rule looks at them."""

NOT_THERE_YET = {"commands", "gpus"}
"""Parts that the table has and the tree does not."""

NOT_YET_REMOVED = {("strop.run.folder", "strop")}
"""Imports that the table does not allow."""

NOT_YET_AT_THE_TOP = {
    ("strop.data.chat_template", "strop.resolve"),
    ("strop.data.store", "strop.data.build"),
    ("strop.data.store", "strop.resolve"),
    ("strop.modal_runs.modal_app", "strop.modal_runs.launch"),
    ("strop.modal_runs.pull", "strop.model.checkpoint.locate"),
    ("strop.modal_runs.pull", "strop.resolve"),
    ("strop.run.folder", "strop"),
    ("strop.run.reporter", "strop.run.live"),
    ("strop.data.dataset", "strop.recipe"),
}
"""Imports in functions or for types alone that could stand at the top."""

CLOSING = frozenset(
    {
        ("strop.data.store", "strop.data.build"),
        ("strop.modal_runs.launch", "strop.modal_runs.modal_app"),
        ("strop.ops.attention", "strop.ops.fused.attention"),
        ("strop.ops.dispatch", "strop.ops.kernels"),
        ("strop.run.reporter", "strop.run.live"),
        ("strop.training.gradients", "strop.fused.capture"),
        ("strop.run.folder", "strop"),
    }
)
"""Imports without which there would be no circle, but for those through `OLD`."""

# ------------------------------------------------------------------------------------------------- the rules


def library(name: str) -> str:
    return name.partition(".")[0]


def is_within(module: str, places: set[str]) -> bool:
    """Whether a module of strop is one of these or in one of these, which are named without `strop.`."""
    inner = module.partition(".")[2]
    return any(inner == place or (place and inner.startswith(f"{place}.")) for place in places)


def forbidden_imports(tree: SourceTree) -> Iterator[Import]:
    """What the table does not allow, whenever it is imported."""
    for found in tree.own_imports("module", "function", "typing"):
        part, other = tree.part(found.importer), tree.part(found.imported)
        if part == other or part in OLD or other in OLD:
            continue
        if not is_within(found.imported, MAY_IMPORT.get(part, set())):
            yield found


def misplaced_libraries(tree: SourceTree) -> Iterator[Import]:
    """A library outside the places that know it."""
    for found in tree.imports:
        places = ONLY_IN.get(library(found.imported))
        if places is not None and tree.part(found.importer) not in OLD and not is_within(found.importer, places):
            yield found


def late_imports(tree: SourceTree) -> Iterator[Import]:
    """Imports in functions, or for types alone, that no rule allows."""
    for found in tree.imports:
        if found.when == "module" or tree.part(found.importer) in OLD:
            continue
        name = found.imported if tree.is_own(found.imported) else library(found.imported)
        needs = {library(loaded) for loaded in tree.loaded_with(found.imported)}
        is_heavy_for_a_command = tree.part(found.importer) == "commands" and not needs.isdisjoint(HEAVY)
        if name not in LATE.get(found.importer, {}) and not is_heavy_for_a_command:
            yield found


def dynamic_imports(tree: SourceTree) -> Iterator[str]:
    """Modules that import what no other rule can see."""
    calls = ("import_module", "__import__", "run_module", "run_path")
    for module, parsed in tree.trees.items():
        for node in ast.walk(parsed):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in calls:
                yield module


def packages_without_purpose(tree: SourceTree) -> Iterator[str]:
    """Packages whose `__init__` does not begin with one line that says what they are for."""
    for module, file in tree.files.items():
        if file.name == "__init__.py":
            first, _, rest = (ast.get_docstring(tree.trees[module]) or "").partition("\n")
            if len(first.split()) < 3 or not first.endswith(".") or (rest and not rest.startswith("\n")):
                yield module


def edges(imports: Iterable[Import]) -> set[tuple[str, str]]:
    return {(found.importer, found.imported) for found in imports}


def lines(imports: Iterable[Import]) -> list[str]:
    return [str(found) for found in imports]


STROP = SourceTree(SOURCE)
ANY: tuple[When, ...] = ("module", "function", "typing")


def test_every_part_imports_only_what_the_table_allows() -> None:
    found = list(forbidden_imports(STROP))
    assert lines(each for each in found if (each.importer, each.imported) not in NOT_YET_REMOVED) == []
    assert edges(found) >= NOT_YET_REMOVED, "take out what is mended"


def test_the_table_has_every_part_and_no_other() -> None:
    parts = {STROP.part(module) for module in STROP.files} - OLD
    assert parts - MAY_IMPORT.keys() == set(), "say in MAY_IMPORT what it may import"
    assert MAY_IMPORT.keys() - parts - OLD == NOT_THERE_YET
    assert {library(name) for allowed in MAY_IMPORT.values() for name in allowed} <= MAY_IMPORT.keys()


def test_the_table_reads_from_the_bottom_up() -> None:
    order = list(MAY_IMPORT)
    pairs = {(part, name) for part, allowed in MAY_IMPORT.items() for name in allowed}
    assert {(part, name) for part, name in pairs if order.index(library(name)) > order.index(part)} == UPWARDS


def test_a_library_is_known_in_one_place() -> None:
    assert lines(misplaced_libraries(STROP)) == []


def test_imports_stand_at_the_top_but_for_listed_ones() -> None:
    found = list(late_imports(STROP))
    new = [each for each in found if (each.importer, each.imported) not in NOT_YET_AT_THE_TOP]
    assert lines(new) == [], "move it to the top, or give the reason in LATE"
    assert edges(found) >= NOT_YET_AT_THE_TOP, "take out what is mended"


def test_every_listed_late_import_is_there() -> None:
    late = [found for found in STROP.imports if found.when != "module"]
    made = {(f.importer, f.imported if STROP.is_own(f.imported) else library(f.imported)) for f in late}
    assert {(module, name) for module, names in LATE.items() for name in names} - made == set()


def test_no_circle_of_imports_as_modules_load() -> None:
    assert STROP.circles("module") == []


def test_no_circle_of_imports_in_functions_and_types_either() -> None:
    circles = STROP.circles(*ANY, without=CLOSING)
    assert [circle for circle in circles if all(STROP.part(module) not in OLD for module in circle)] == []
    still = [set(circle) for circle in STROP.circles(*ANY)]
    assert [edge for edge in CLOSING if not any(set(edge) <= circle for circle in still)] == [], (
        "take out what is mended"
    )


def test_trackers_alone_are_imported_by_a_name_that_is_made() -> None:
    """So is, from `strop` itself, what its public names stand for (PEP 562)."""
    assert set(dynamic_imports(STROP)) <= {"strop", "strop.run.trackers.tracker"}


def test_every_package_says_in_one_line_what_it_is_for() -> None:
    assert list(packages_without_purpose(STROP)) == []


def test_no_public_function_has_the_name_of_a_package() -> None:
    """Importing the package would put it in the function's place: strop.train(...) worked once only."""
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert {"training", "evaluation"} <= packages
    assert packages.isdisjoint(strop.__all__)


def test_what_answers_at_once_loads_no_heavy_library() -> None:
    """One process imports one after the other, so what any of them loads is seen."""
    modules = ["strop", "strop.recipe", "strop.errors", "strop.cli", "strop.resolve", "strop.modal_runs.modal_app"]
    modules += [name for name in STROP.files if STROP.part(name) in ("commands", "gpus") and name not in IN_PROCESS]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    print(module, *(name for name in ("torch", "transformers", "numpy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.splitlines() == modules, done.stderr


def test_a_recipe_with_a_fault_is_answered_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "faulty.yaml"
    recipe.write_text("model: {model_name_or_path: x, max_sequence: 3}\n", encoding="utf-8")
    code = f"""
import sys
from strop import cli
sys.argv = ["strop", "train", {str(recipe)!r}]
try:
    cli.main()
finally:
    print(*(name for name in ("torch", "transformers", "numpy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "max_sequence" in done.stderr
    assert (done.returncode, done.stdout.strip()) == (2, "")


def test_every_optional_library_counts_as_heavy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        project["optional-dependencies"][name] for name in ("parquet", "gguf", "serve", "export", "lm-eval", "modal")
    ]
    assert {re.split(r"[>=<]", line)[0] for extra in extras for line in extra} <= HEAVY


# ------------------------------------------------------------------------------------------ each rule can fail

Write = Callable[[dict[str, str]], SourceTree]
WAYS = {
    "at the top": "{}\n",
    "in a function": "def f():\n    {}\n",
    "in a method": "class C:\n    def f(self):\n        {}\n",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n",
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(modules: dict[str, str]) -> SourceTree:
        for name, text in modules.items():
            path = tmp_path / "strop" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return SourceTree(tmp_path / "strop")

    return write


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", sorted(MAY_IMPORT.keys() - OLD))
def test_every_import_that_the_table_does_not_allow_is_seen(part: str, way: str, write: Write) -> None:
    others = MAY_IMPORT.keys() - {part, ""} - OLD
    modules = {f"{other}/y.py": "" for other in others}
    modules[f"{part}/x.py" if part else "__init__.py"] = "".join(
        WAYS[way].format(f"from strop.{other} import y") for other in others
    )
    seen = edges(forbidden_imports(write(modules)))
    importer = f"strop.{part}.x" if part else "strop"
    assert seen == {(importer, f"strop.{other}.y") for other in others if other not in MAY_IMPORT[part]}


def test_a_part_that_no_table_has_may_import_nothing(write: Write) -> None:
    tree = write({"new/x.py": "from strop import errors\n", "errors.py": ""})
    assert edges(forbidden_imports(tree)) == {("strop.new.x", "strop.errors")}


def test_ops_may_import_one_module_of_microbatch(write: Write) -> None:
    tree = write(
        {
            "ops/x.py": "from strop.microbatch.tree import Tree\nfrom strop.microbatch.pack import pack\n",
            "microbatch/tree.py": "",
            "microbatch/pack.py": "",
        }
    )
    assert edges(forbidden_imports(tree)) == {("strop.ops.x", "strop.microbatch.pack")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ONLY_IN)
def test_a_library_in_another_place_is_seen(name: str, way: str, write: Write) -> None:
    place = sorted(ONLY_IN[name])[0].replace(".", "/")
    text = WAYS[way].format(f"import {name}.inner")
    tree = write({"recipe/x.py": text, f"{place}.py": text})
    assert edges(misplaced_libraries(tree)) == {("strop.recipe.x", f"{name}.inner")}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "at the top"])
def test_a_late_import_is_seen_but_for_heavy_ones_in_commands(way: str, write: Write) -> None:
    tree = write(
        {
            "commands/x.py": WAYS[way].format("from strop.model import heavy, light\n"),
            "model/x.py": WAYS[way].format("from strop.model import heavy\n"),
            "data/readers.py": WAYS[way].format("import pyarrow.parquet, csv\n"),
            "model/heavy.py": "from strop.model import between\n",
            "model/between.py": "try:\n    import torch.cuda\nexcept ImportError:\n    pass\n",
            "model/light.py": "def f():\n    pass\n",
        }
    )
    found = {edge for edge in edges(late_imports(tree)) if edge[1] != "typing"}
    assert found == {
        ("strop.commands.x", "strop.model.light"),
        ("strop.model.x", "strop.model.heavy"),
        ("strop.data.readers", "csv"),
    }


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_a_circle_is_seen_however_it_closes(first: str, second: str, write: Write) -> None:
    tree = write(
        {
            "a.py": WAYS[first].format("from strop.b import y"),
            "b.py": "from strop import c\n",
            "c.py": WAYS[second].format("import strop.a"),
            "d.py": "from strop import a\n",
        }
    )
    circle = ["strop.a", "strop.b", "strop.c"]
    assert tree.circles(*ANY) == [circle]
    assert tree.circles(*ANY, without=frozenset({("strop.c", "strop.a")})) == []
    assert tree.circles("module") == ([circle] if first == second == "at the top" else [])


def test_two_circles_are_two(write: Write) -> None:
    tree = write({f"{name}.py": f"from strop import {other}\n" for name, other in ("ab", "ba", "cd", "dc", "ee")})
    assert tree.circles("module") == [["strop.a", "strop.b"], ["strop.c", "strop.d"], ["strop.e"]]


@pytest.mark.parametrize(
    "call", ["importlib.import_module(x)", "import_module('strop.model')", "__import__(x)", "runpy.run_module(x)"]
)
def test_an_import_by_name_is_seen(call: str, write: Write) -> None:
    assert list(dynamic_imports(write({"a.py": f"def f(x):\n    return {call}\n"}))) == ["strop.a"]


def test_a_relative_import_is_refused(write: Write) -> None:
    with pytest.raises(AssertionError, match="absolute"):
        write({"a.py": "from . import b\n"})


@pytest.mark.parametrize(
    "text", ["", '"""Short."""', '"""A purpose that never ends"""', '"""A purpose over\ntwo lines of it."""']
)
def test_a_package_without_a_line_on_its_purpose_is_seen(text: str, write: Write) -> None:
    said = '"""What this package is for."""\n'
    tree = write({"__init__.py": said, "a/__init__.py": text, "b/__init__.py": said, "b/x.py": ""})
    assert list(packages_without_purpose(tree)) == ["strop.a"]
