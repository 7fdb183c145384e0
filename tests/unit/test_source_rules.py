"""What may not stand anywhere in strop's source."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src" / "strop"
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
REGISTRY_HOST = re.compile(r"(huggingface\.co|hf\.co|pypi\.org|pythonhosted\.org|registry\.npmjs\.org|anaconda\.org)")


def faults_in(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    loaders = {c.name for c in classes if [ast.unparse(base) for base in c.bases] == ["yaml.SafeLoader"]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}()"
            safe = name == "yaml.safe_load" or (len(node.args) == 2 and ast.unparse(node.args[1]) in loaders)
            if name.startswith("yaml.") and name.endswith("load") and not safe:
                yield f"line {node.lineno}: {name}() with a loader that is not known to be safe"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("trust_remote_code", "shell", "weights_only") and not off:
                    yield f"line {node.lineno}: {ast.unparse(keyword)}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and REGISTRY_HOST.search(node.value):
            yield f"line {node.lineno}: names a registry host"


@pytest.mark.parametrize("file", sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")))
def test_source_runs_no_foreign_code_and_names_no_registry(file: str) -> None:
    assert list(faults_in((SOURCE / file).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoConfig.from_pretrained(x, trust_remote_code=True)",
        "AutoConfig.from_pretrained(x, trust_remote_code=None)",
        "AutoConfig.from_pretrained(x, trust_remote_code=flag)",
        "subprocess.run(x, shell=True)",
        "torch.load(x, weights_only=True)",
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "yaml.load(x)",
        "yaml.load(x, yaml.UnsafeLoader)",
        "yaml.unsafe_load(x)",
        "class L(yaml.Loader): pass\nyaml.load(x, L)",
        "url = 'https://hugging" + "face.co/x'",
    ],
)
def test_each_rule_can_fail(line: str) -> None:
    assert list(faults_in(line))


def repeated(paths: Iterable[Path], at_most: int) -> list[str]:
    """File names that more than so many of these paths have."""
    return sorted(name for name, count in Counter(path.name for path in paths).items() if count > at_most)


def test_no_two_test_files_have_one_name() -> None:
    """pytest takes them for one, and leaves out the second; a run of either alone does not show it."""
    assert repeated(TESTS.rglob("test_*.py"), 1) == []


def test_no_helper_of_the_tests_has_the_name_of_another_module() -> None:
    """They are imported by their bare names, and the first on the path wins."""
    helpers = {path.stem for path in (TESTS / "support").glob("*.py")}
    others = {path.stem for path in TESTS.rglob("*.py") if path.parent.name != "support"}
    assert helpers & (others | set(sys.stdlib_module_names)) == set()


def test_no_file_name_is_there_three_times() -> None:
    """One that is says nothing: answers.py was, and 17 other names were there twice."""
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    assert repeated(modules, 2) == []
    assert repeated([Path("a/x.py"), Path("b/x.py"), Path("c/x.py"), Path("d/y.py"), Path("e/y.py")], 2) == ["x.py"]


def undocumented(source: str) -> list[str]:
    """The module, and public classes and functions in it, that have no docstring."""
    tree = ast.parse(source)
    defined = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]
    missing = [node.name for node in defined if ast.get_docstring(node) is None]
    return missing if ast.get_docstring(tree) else ["module", *missing]


def test_every_module_and_what_it_offers_has_a_docstring() -> None:
    found = {
        path.relative_to(SOURCE).as_posix(): undocumented(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")
    }
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_every_helper_of_the_tests_says_what_it_is() -> None:
    found = {path.name: undocumented(path.read_text("utf-8")) for path in (TESTS / "support").glob("*.py")}
    assert [name for name, missing in found.items() if "module" in missing] == []


def test_what_has_no_docstring_is_seen() -> None:
    sound = '"""What it is for."""\nclass A:\n    """A."""\ndef f():\n    """F."""\ndef _g():\n    pass\n'
    assert undocumented(sound) == []
    assert undocumented(sound.replace('"""A."""', "pass").replace('"""What it is for."""', "")) == ["module", "A"]
