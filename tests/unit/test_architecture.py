"""Who may import whom, and what stays cheap to import."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import strop

SOURCE = Path(__file__).parents[2] / "src" / "strop"
TOP = {"cli", "commands", "__main__", "__init__"}
MAY_IMPORT = {
    "errors": set(),
    "ops": {"errors"},
    "recipe": {"errors"},
    "resolve": {"errors"},
    "data": {"recipe", "resolve", "errors"},
    "microbatch": {"data", "ops", "recipe", "errors"},
    "model": {"microbatch", "ops", "recipe", "resolve", "errors"},
    "fused": {"microbatch", "model", "ops", "training", "errors"},
    "run": {"recipe", "resolve", "errors"},
    "training": {"data", "microbatch", "model", "fused", "ops", "run", "recipe", "errors"},
    "forecast": {"data", "microbatch", "model", "training", "modal_runs", "run", "recipe", "errors"},
    "reporting": {"run", "errors"},
    "evaluation": {"data", "microbatch", "model", "ops", "run", "recipe", "errors"},
    "unsloth": {"data", "microbatch", "model", "run", "training", "recipe", "errors"},
    "serving": {"data", "model", "evaluation", "recipe", "errors"},
    "exporting": {"data", "model", "ops", "evaluation", "run", "recipe", "resolve", "errors"},
    "modal_runs": {"data", "model", "run", "recipe", "resolve", "errors"},
}


def imported_parts(path: Path) -> set[str]:
    """First names under `strop` that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names |= {
                f"{node.module}.{alias.name}" if node.module == "strop" else str(node.module) for alias in node.names
            }
    parts = {name.split(".")[1] for name in names if name.startswith("strop.")}
    return {name for name in parts if not name.startswith("__")}


def files() -> list[str]:
    return sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", files())
def test_imports_point_downwards(file: str) -> None:
    part = Path(file).parts[0].removesuffix(".py")
    imported = imported_parts(SOURCE / file) - {part}
    if part in MAY_IMPORT:
        assert imported <= MAY_IMPORT[part], f"{part} may import {sorted(MAY_IMPORT[part])}"
    else:
        assert part in TOP, f"{part} is new: say in MAY_IMPORT what it may import"
        assert "cli" not in imported or part == "__main__", "nothing imports cli"


@pytest.mark.parametrize("file", files())
def test_modal_is_imported_in_modal_runs_only(file: str) -> None:
    names = {
        name
        for node in ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    assert file.startswith("modal_runs/") or not {name for name in names if name.partition(".")[0] == "modal"}


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the function's place: strop.train(...) worked once only."""
    modules = {path.parent.name for path in SOURCE.glob("*/__init__.py")} | {path.stem for path in SOURCE.glob("*.py")}
    assert {"training", "evaluation", "cli"} <= modules
    assert modules.isdisjoint(strop.__all__)


def test_the_scan_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from strop.training.loop import g\n    from strop import cli\n")
    assert imported_parts(tmp_path / "x.py") == {"training", "cli"}


@pytest.mark.parametrize(
    "module", ["strop", "strop.recipe", "strop.errors", "strop.cli", "strop.resolve", "strop.modal_runs.modal_app"]
)
def test_importing_it_loads_neither_torch_nor_transformers(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]", done.stderr
