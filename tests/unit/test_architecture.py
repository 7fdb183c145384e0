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
    "secrets": set(),
    "terminal": {"secrets", "errors"},
    "": {"errors"},
    "gpus": {"errors"},
    "resolve": {"errors"},
    "readable": {"errors"},
    "threads": set(),
    "digest": set(),
    "recipe": {"gpus", "resolve", "secrets", "errors"},
    "data": {"recipe", "resolve", "terminal", "digest", "errors", "readable"},
    "microbatch": {"data", "recipe", "errors"},
    "ops": {"microbatch.tree", "errors"},
    "model": {"microbatch", "ops", "recipe", "resolve", "gpus", "errors"},
    "run": {"recipe", "terminal", "digest", "errors", "", "readable"},
    "parallel": {"run.folder", "terminal", "errors", ""},
    "fused": {"microbatch", "model", "ops", "errors"},
    "training": {"data", "microbatch", "model", "fused", "ops", "parallel", "run", "recipe", "gpus", "errors"},
    "evaluation": {"parallel.team", "data", "microbatch", "model", "ops", "run", "errors", "readable"},
    "reporting": {"evaluation.result", "run", "errors", "readable"},
    "modal_runs": {"data", "model", "run", "recipe", "resolve", "gpus", "terminal", "digest", "errors", "readable"},
    "forecast": {
        "readable",
        *("data", "microbatch", "model", "fused.inputs", "training", "modal_runs.prices", "run"),
        *("recipe", "gpus", "errors", ""),
    },
    "unsloth": {"data", "microbatch", "model", "run", "training", "recipe", "errors"},
    "serving": {"data", "model", "evaluation", "terminal", "errors"},
    "exporting": {
        "readable",
        *("data", "microbatch.tree", "model", "ops", "evaluation", "run", "recipe", "threads", "errors"),
    },
    "commands": {
        "readable",
        *(
            "data",
            "microbatch",
            "model",
            "training",
            "parallel",
            "run",
            "evaluation",
            "reporting",
            "modal_runs",
            "forecast",
            "unsloth",
            "serving",
        ),
        *("exporting", "resolve", "recipe", "gpus", "terminal", "threads", "errors", ""),
    },
    "app": {"terminal", "errors", ""},
    "cli": {"app", "commands", "terminal", "errors"},
    "__main__": {"cli"},
}
"""What each folder or file of src/strop may import, from the bottom up: what one may import stands above it. A dotted
name allows one module of a folder. "" is strop/__init__.py: the version, and the public names that are loaded late."""

ONLY_IN = {
    "modal": {"modal_runs"},
    "triton": {"ops"},
    "typer": {"app", "commands"},
    "transformers": {"data.tokenizer", "data.chat_template", "exporting.parity.huggingface", "unsloth.worker"},
    "peft": {"exporting.parity.huggingface", "unsloth.worker"},
    "trl": {"unsloth.worker"},
    "unsloth": {"unsloth.worker"},
    "lm_eval": {"commands.lm_eval", "commands.harness"},
    "xllamacpp": {"exporting.parity.llama_cpp"},
    "starlette": {"serving"},
    "uvicorn": {"serving.server", "serving.connections"},
    "huggingface_hub": {"resolve", "commands", "reporting.card"},
    "zstandard": {"data.readers.compression"},
}
"""Libraries that one place knows."""

HEAVY = {
    *("torch", "numpy", "transformers", "modal", "pyarrow", "gguf", "peft", "xllamacpp", "starlette", "uvicorn"),
    *("lm_eval", "trl", "unsloth", "huggingface_hub", "zstandard"),
}
"""Libraries that take a second to import, or need not be installed. `strop --help` and a faulty recipe wait for none of
them, so a command imports what needs one when it is called."""

WHEN_CALLED = {"strop.commands.harness"}
"""Its class derives from a heavy library's."""

OPTIONAL = "strop can do without it"
NEEDS_MODAL = "imports modal, which strop can do without"
NEEDS_TRITON = "imports triton, which machines without a GPU need not have"
ON_MODAL = "a tenth of a second that only runs on Modal need"
SEVERAL = "imports torch; whoever trains alone has it loaded while a line says so"
GUARDED = "a second in which Ctrl-C and a full disk have to be one line too"
LATE: dict[str, dict[str, str]] = {
    "strop.cli": {
        "strop.app": GUARDED,
        "strop.commands.console": GUARDED,
        "strop.terminal": GUARDED,
        "traceback": "only for a bug",
    },
    "strop.commands.logs": {"strop.modal_runs.follow": ON_MODAL},
    "strop.commands.pull": {"strop.modal_runs.pull": ON_MODAL},
    "strop.commands.serve": {"strop.modal_runs.serving": ON_MODAL},
    "strop.commands.train": {"strop.modal_runs.launch": ON_MODAL},
    "strop.data.readers.arrow": {"pyarrow": OPTIONAL},
    "strop.data.readers.compression": {"zstandard": OPTIONAL},
    "strop.evaluation.result": {"pyarrow": OPTIONAL},
    "strop.exporting.gguf.file": {"gguf": OPTIONAL},
    "strop.exporting.gguf.metadata": {"gguf": OPTIONAL},
    "strop.exporting.parity.huggingface": {"peft": OPTIONAL},
    "strop.exporting.parity.llama_cpp": {"xllamacpp": OPTIONAL},
    "strop.modal_runs.follow": {"modal": OPTIONAL},
    "strop.modal_runs.launch": {"modal": OPTIONAL, "strop.modal_runs.modal_app": NEEDS_MODAL},
    "strop.modal_runs.prices": {"modal": OPTIONAL},
    "strop.modal_runs.pull": {"modal": OPTIONAL, "strop.run.checkpoint": "imports torch; who follows a run has none"},
    "strop.modal_runs.serving": {
        "modal": OPTIONAL,
        "strop.modal_runs.modal_app": NEEDS_MODAL,
        "strop.modal_runs.serving_app": NEEDS_MODAL,
    },
    "strop.modal_runs.upload": {"modal": OPTIONAL},
    "strop.model.pretrained.gguf": {"gguf": OPTIONAL},
    "strop.model.pretrained.locate": {
        "strop.model.pretrained.gguf": "imports torch; only for a file of that kind, and `strop pull` locates models"
    },
    "strop.parallel.join": {"strop.parallel.process_meeting": SEVERAL},
    "strop.parallel.launch": {"torch": SEVERAL},
    "strop.parallel.team": {"torch": SEVERAL},
    "strop.ops": {"strop.ops.triton.kernels": NEEDS_TRITON},
    "strop.ops.attention": {"strop.ops.triton.attention": NEEDS_TRITON},
    "strop.resolve": {"huggingface_hub": "half a second, and only for what is no path"},
    "strop.training.gradients": {"strop.fused.capture": NEEDS_TRITON},
    "strop.unsloth.worker": dict.fromkeys(
        ("unsloth", "trl", "peft", "transformers", "pyarrow", "datasets"),
        "unsloth comes first, or it cannot patch the others; and strop can do without all of them",
    ),
}
"""Imports in functions or for types alone, of a library or of a module of ours, each with its reason. In `commands`
what is heavy needs none; any other import stands at the top."""

# ------------------------------------------------------------------------------------------------- the rules


def library(name: str) -> str:
    return name.partition(".")[0]


def is_within(module: str, places: set[str]) -> bool:
    """Whether a module of strop is one of these or in one of these, which are named without `strop.`."""
    inner = module.partition(".")[2]
    return any(inner == place or (place and inner.startswith(f"{place}.")) for place in places)


def is_for_type_checkers(found: Import) -> bool:
    """Public names in strop/__init__.py, which are loaded when they are used."""
    return found.when == "typing" and found.importer == "strop"


def forbidden_imports(tree: SourceTree) -> Iterator[Import]:
    """What the table does not allow, whenever it is imported."""
    for found in tree.own_imports(*ANY):
        part = tree.part(found.importer)
        if part != tree.part(found.imported) and not is_within(found.imported, MAY_IMPORT.get(part, set())):
            yield found


def misplaced_libraries(tree: SourceTree) -> Iterator[Import]:
    """A library outside the places that know it."""
    for found in tree.imports:
        places = ONLY_IN.get(library(found.imported))
        if places is not None and not is_within(found.importer, places):
            yield found


def late_imports(tree: SourceTree) -> Iterator[Import]:
    """Imports in functions, or for types alone, that no rule allows."""
    for found in tree.imports:
        is_command = tree.part(found.importer) == "commands"
        if found.when == "module" or (found.when == "typing" and is_command):
            continue
        name = found.imported if tree.is_own(found.imported) else library(found.imported)
        is_heavy = not {library(loaded) for loaded in tree.loaded_with(found.imported)}.isdisjoint(HEAVY)
        if name not in LATE.get(found.importer, {}) and not (is_command and is_heavy):
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


ANY: tuple[When, ...] = ("module", "function", "typing")
STROP = SourceTree(SOURCE)
STROP.imports = [found for found in STROP.imports if not is_for_type_checkers(found)]


def test_every_part_imports_only_what_the_table_allows() -> None:
    assert lines(forbidden_imports(STROP)) == []


def test_the_table_has_every_part_and_no_other() -> None:
    assert MAY_IMPORT.keys() == {STROP.part(module) for module in STROP.files}, "say in MAY_IMPORT what it may import"
    assert {library(name) for allowed in MAY_IMPORT.values() for name in allowed} <= MAY_IMPORT.keys()


def test_the_table_reads_from_the_bottom_up() -> None:
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        assert all(order.index(library(name)) < order.index(part) for name in allowed), part


def test_the_table_allows_nothing_that_is_not_used() -> None:
    used = {(STROP.part(found.importer), found.imported) for found in STROP.own_imports(*ANY)}
    unused = {
        (part, name)
        for part, allowed in MAY_IMPORT.items()
        for name in allowed - {"errors"}
        if not any(part == importer and is_within(imported, {name}) for importer, imported in used)
    }
    assert unused == set()


def test_a_library_is_known_in_one_place() -> None:
    assert lines(misplaced_libraries(STROP)) == []


def test_imports_stand_at_the_top_but_for_listed_ones() -> None:
    assert lines(late_imports(STROP)) == [], "move it to the top, or give the reason in LATE"


def test_every_listed_late_import_is_there() -> None:
    late = [found for found in STROP.imports if found.when != "module"]
    made = {(f.importer, f.imported if STROP.is_own(f.imported) else library(f.imported)) for f in late}
    assert {(module, name) for module, names in LATE.items() for name in names} - made == set()


def test_no_circle_of_imports_as_modules_load() -> None:
    assert STROP.circles("module") == []


def test_no_circle_of_imports_in_functions_and_types_either() -> None:
    assert STROP.circles(*ANY) == []


def test_trackers_alone_are_imported_by_a_name_that_is_made() -> None:
    """So is, from `strop` itself, what its public names stand for (PEP 562), and a command, when it is called."""
    assert set(dynamic_imports(STROP)) <= {"strop", "strop.app", "strop.run.trackers.tracker"}


def test_every_package_says_in_one_line_what_it_is_for() -> None:
    assert list(packages_without_purpose(STROP)) == []


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the function's place: strop.train(...) worked once only."""
    modules = {path.parent.name for path in SOURCE.glob("*/__init__.py")} | {path.stem for path in SOURCE.glob("*.py")}
    assert {"training", "evaluation", "cli"} <= modules
    assert modules.isdisjoint(strop.__all__)


def test_what_answers_at_once_loads_no_heavy_library() -> None:
    """One process imports one after the other, so what any of them loads is seen. A page may need numpy."""
    light = ["strop", "strop.recipe", "strop.errors", "strop.gpus", "strop.cli", "strop.resolve"]
    light += ["strop.modal_runs.modal_app", "strop.run.folder", "strop.run.live"]
    light += [name for name in STROP.files if STROP.part(name) == "commands" and name not in WHEN_CALLED]
    pages = ["strop.reporting.page", "strop.reporting.card"]
    code = f"""
import importlib, sys
for module in {light + pages}:
    importlib.import_module(module)
    print(module, *(name for name in ("torch", "transformers", "numpy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.replace(" numpy", "").splitlines() == light + pages, done.stderr
    assert done.stdout.splitlines()[: len(light)] == light


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
    names = ("parquet", "zstd", "gguf", "serve", "export", "lm-eval", "modal")
    extras = [project["optional-dependencies"][name] for name in names]
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
@pytest.mark.parametrize("part", MAY_IMPORT)
def test_every_import_that_the_table_does_not_allow_is_seen(part: str, way: str, write: Write) -> None:
    others = MAY_IMPORT.keys() - {part, ""}
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
            "data/readers/arrow.py": WAYS[way].format("import pyarrow.parquet, csv\n"),
            "model/heavy.py": "from strop.model import between\n",
            "model/between.py": "try:\n    import torch.cuda\nexcept ImportError:\n    pass\n",
            "model/light.py": "def f():\n    pass\n",
        }
    )
    found = {edge for edge in edges(late_imports(tree)) if edge[1] != "typing"}
    light = {("strop.commands.x", "strop.model.light")} if way != "for types" else set()
    assert found == light | {("strop.model.x", "strop.model.heavy"), ("strop.data.readers.arrow", "csv")}


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


def test_the_design_has_the_same_table() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("| room | may import, beside `errors` |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", table, flags=re.MULTILINE))
    said = {room: set(re.findall("`([a-z_.]+)`", names)) for room, names in rows.items()}
    held = {
        room: names - {"errors", ""} for room, names in MAY_IMPORT.items() if room not in ("errors", "", "__main__")
    }
    assert said == held
