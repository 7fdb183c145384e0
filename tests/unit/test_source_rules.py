"""What may not stand anywhere in strop's source."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "strop"
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


def test_no_two_test_files_have_one_name() -> None:
    """pytest takes them for one, and leaves out the second; a run of either alone does not show it."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
