"""`strop train --on modal`, `strop logs`, `strop pull` and `modal run` against the fake; a stub trains."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2

from fake_modal import SECRETS, FakeModal
from model_folders import write_model_folder
from tiny_runs import write_rows
from waiting import PATIENCE

pytestmark = pytest.mark.program("stub_strop.py")

Client = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe of a name, with a `modal` section."""

    def write(name: str, **modal: Any) -> str:
        if not (tmp_path / "model").exists():
            write_model_folder(tmp_path / "model")
        rows = write_rows(tmp_path / "rows.jsonl", 5)
        contents = {
            "model": {"model_name_or_path": str(tmp_path / "model")},
            "data": {"train_file": str(rows)},
            "modal": modal,
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(contents))
        return f"{name}.yaml"

    return write


def gpus(modal: FakeModal) -> list[tuple[str, int]]:
    resources = [request.function_options.resources.gpu_config for request in modal.sent("FunctionBindParams")]
    return [(config.gpu_type, config.count) for config in resources]


def test_the_app_is_what_the_recipe_says(modal: FakeModal, client: Client, recipe: Callable[..., str]) -> None:
    done = client("train", recipe("exit-0", gpu="H100:2", timeout=7200, secrets="huggingface"), "--on", "modal")
    assert done.returncode == 0, done.stderr
    commands = [line for request in modal.sent("ImageGetOrCreate") for line in request.image.dockerfile_commands]
    assert any(line.startswith("FROM python:3.12") for line in commands)
    assert any("uv pip install" in line and "--require-hashes" in line for line in commands)
    assert any(line.startswith("ENV HF_HOME=/strop/cache/") for line in commands)
    mounted = [file.filename for request in modal.sent("MountGetOrCreate") for file in request.files]
    assert "/root/strop/modal_runs/attempt.py" in mounted
    (created,) = modal.sent("FunctionCreate")
    function = created.function
    assert {mount.mount_path: (mount.volume_id, mount.read_only) for mount in function.volume_mounts} == {
        "/strop/data": ("vo-strop-data", True),
        "/strop/runs": ("vo-strop-runs", False),
        "/strop/cache": ("vo-strop-cache", False),
    }
    create = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
    created_volumes = [r for r in modal.sent("VolumeGetOrCreate") if r.object_creation_type == create]
    assert {request.version for request in created_volumes} == {2}
    assert (function.retry_policy.retries, function.retry_policy.initial_delay_ms) == (10, 0)
    assert function.single_use_containers
    assert not function.resources.gpu_config.gpu_type  # chosen by the recipe when called, never when imported
    (bound,) = modal.sent("FunctionBindParams")
    assert gpus(modal) == [("H100", 2)]
    assert bound.function_options.timeout_secs == 7200
    assert len(bound.function_options.secret_ids) == 1
    assert "training on H100:2, HF_TOKEN is set" in done.stdout


def test_the_lock_pins_what_the_figures_were_measured_with() -> None:
    lock = (Path(__file__).parents[2] / "src/strop/modal_runs/requirements.lock").read_text()
    pins = [line for line in lock.splitlines() if "==" in line]
    assert "torch==2.11.0 \\" in pins
    assert lock.count("--hash=sha256:") >= len(pins)
    assert "://" not in lock


def test_a_run_that_cannot_succeed_is_made_once(modal: FakeModal, client: Client, recipe: Callable[..., str]) -> None:
    done = client("train", recipe("exit-2"), "--on", "modal")
    assert done.returncode == 2
    assert len(modal.tasks) == 1
    assert "exit code 2" in done.stdout


def test_out_of_memory_moves_on_to_a_larger_gpu(modal: FakeModal, client: Client, recipe: Callable[..., str]) -> None:
    done = client("train", recipe("small-on-L4", gpu=["L4", "A10", "L4:2", "A100-80GB"]), "--on", "modal")
    assert done.returncode == 0, done.stdout + done.stderr
    assert gpus(modal) == [("L4", 1), ("A100-80GB", 1)]  # an A10 has no more memory than an L4, nor have two of them
    assert "out of memory on L4 (exit code 6)" in done.stdout


def test_out_of_memory_on_the_largest_is_the_result(
    modal: FakeModal, client: Client, recipe: Callable[..., str]
) -> None:
    assert client("train", recipe("exit-6", gpu=["H200", "H100"]), "--on", "modal").returncode == 6
    assert gpus(modal) == [("H200", 1)]


@pytest.mark.slow
def test_a_second_launch_uploads_nothing(
    modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    first = client("train", recipe("exit-0"), "--on", "modal")
    assert "uploading 5 files" in first.stdout
    sent = len(modal.sent("VolumePutFiles2"))
    assert sent > 0
    again = client("train", "exit-0.yaml", "--on", "modal")
    assert again.returncode == 0
    assert "nothing to upload" in again.stdout
    assert len(modal.sent("VolumePutFiles2")) == sent
    assert "attempt 2 of exit-0-" in again.stdout  # the same run, not another
    write_rows(tmp_path / "rows.jsonl", 6)
    changed = client("train", "exit-0.yaml", "--on", "modal")
    assert changed.returncode == 4
    assert "train.output_dir" in changed.stderr
    other = client("train", "exit-0.yaml", "train.output_dir=runs/other", "--on", "modal")
    assert "uploading 1 file," in other.stdout


@pytest.mark.slow
def test_logs_and_pull_reach_a_run_whose_client_was_killed(
    modal: FakeModal, start: Start, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    first = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: "second 1\n" in modal.output())
    first.kill()
    first.communicate()
    (task,) = modal.tasks.values()
    so_far = client("logs", "runs/slow")
    assert so_far.returncode == 0, so_far.stderr
    assert so_far.stdout.count("second 1\n") == 1
    follower = start("logs", "runs/slow", "--follow")
    again = client("train", "slow.yaml", "--on", "modal", "--detach")
    assert "is already running" in again.stdout
    assert len(modal.calls) == 1
    next(task.runs.glob("*/run")).joinpath("go-on").touch()
    out, errors = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 0, errors
    assert out.startswith(so_far.stdout)
    lines = [line for line in out.splitlines() if line.startswith("second")]
    assert lines == [f"second {number}" for number in range(len(lines))]  # each once, although fetched and streamed
    assert "exit code 0" in out
    pulled = client("pull", "runs/slow")
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "runs/slow/adapter/adapter_model.safetensors").read_bytes() == b"weights"


def test_a_tracker_is_refused_before_anything_is_sent(
    modal: FakeModal, client: Client, recipe: Callable[..., str]
) -> None:
    done = client("train", recipe("exit-0"), "--on", "modal", "train.report_to=wandb")
    assert done.returncode == 2
    assert "train.report_to=wandb: runs on Modal have no trackers" in done.stderr
    assert not modal.calls


def test_detach_hands_the_run_over_and_leaves(modal: FakeModal, client: Client, recipe: Callable[..., str]) -> None:
    done = client("train", recipe("exit-0"), "--on", "modal", "--detach")
    assert done.returncode == 0, done.stderr
    assert "strop logs runs/exit-0 --follow" in done.stdout.replace("\n", " ")
    (app,) = modal.apps
    assert f"its page at Modal: https://modal.com/id/{app}" in done.stdout
    modal.wait_for(lambda: all(call.output for call in modal.calls.values()))
    assert client("pull", "runs/exit-0").returncode == 0


def test_the_older_of_two_containers_stops_and_writes_no_more(
    modal: FakeModal, client: Client, start: Start, recipe: Callable[..., str], tmp_path: Path
) -> None:
    older = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: "second 1\n" in modal.output())
    (tmp_path / "runs/slow/modal.json").unlink()  # as from another machine, which knows nothing of the first
    (tmp_path / "runs/slow/recipe.yaml").unlink()
    assert client("train", "slow.yaml", "--on", "modal", "--detach").returncode == 0
    out, _ = older.communicate(timeout=PATIENCE)
    assert older.returncode == 75
    assert "a newer attempt owns slow-" in out
    _, second = modal.tasks.values()
    run = next(second.runs.glob("*/run"))
    run.joinpath("go-on").touch()
    modal.wait_for(lambda: second.call.output)
    fence = json.loads(next(modal.volume("strop-runs").glob("*/fence.json")).read_text())
    assert fence["attempt"] == 2
    assert list(modal.volume("strop-runs").glob("*/run/adapter/adapter_model.safetensors"))
    assert len(modal.tasks) == 2  # the older one was not tried again


def test_a_preempted_container_starts_again_without_a_retry(
    modal: FakeModal, start: Start, recipe: Callable[..., str]
) -> None:
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: "second 1\n" in modal.output())
    (first,) = modal.tasks.values()
    modal.preempt(first)
    second = modal.wait_for(lambda: next((task for task in modal.tasks.values() if task is not first), None))
    modal.wait_for(lambda: modal.output().count("second 1\n") == 2)
    next(second.runs.glob("*/run")).joinpath("go-on").touch()
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors
    assert "attempt 2 of slow-" in out
    assert first.call.num_retries == 0
    assert "Traceback" not in out + errors


def test_an_attempt_that_fails_by_itself_is_retried(modal: FakeModal, start: Start, recipe: Callable[..., str]) -> None:
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: "second 1\n" in modal.output())
    (first,) = modal.tasks.values()
    assert first.process is not None
    (child,) = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
    subprocess.run(["kill", "-KILL", child], check=True)
    second = modal.wait_for(lambda: next((task for task in modal.tasks.values() if task is not first), None))
    modal.wait_for(lambda: modal.output().count("second 1\n") == 2)
    next(second.runs.glob("*/run")).joinpath("go-on").touch()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert first.call.num_retries == 1


def interrupted(process: "subprocess.Popen[str]") -> int:
    """Press Ctrl-C in a client, and return its exit code."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    return process.returncode


def test_ctrl_c_stops_the_run_as_it_does_here(modal: FakeModal, start: Start, recipe: Callable[..., str]) -> None:
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: "second 1\n" in modal.output())
    assert interrupted(process) == 75
    assert len(modal.sent("FunctionCallCancel")) == 1
    (task,) = modal.tasks.values()
    assert task.process is not None
    modal.wait_for(lambda: task.process.returncode is not None)
    assert len(modal.tasks) == 1
    assert list(modal.volume("strop-runs").glob("*/run/saved"))  # what it wrote when it was stopped is committed


def test_ctrl_c_that_ends_our_reader_too_stops_the_run(
    modal: FakeModal, start: Start, recipe: Callable[..., str]
) -> None:
    modal.seconds["AppGetLogs"] = 100.0  # nothing is printed before the reader has gone
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: modal.sent("AppGetLogs"))
    modal.seconds["AppGetLogs"] = 0.0
    assert process.stdout is not None
    process.stdout.close()
    assert interrupted(process) == 75
    assert len(modal.sent("FunctionCallCancel")) == 1


@pytest.mark.parametrize("rpc", ["FunctionMap", "AppClientDisconnect"])
def test_ctrl_c_while_a_run_is_handed_over_stops_it(
    rpc: str, modal: FakeModal, start: Start, recipe: Callable[..., str]
) -> None:
    modal.seconds[rpc] = 2.0
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: modal.sent(rpc))
    assert interrupted(process) == 75
    assert len(modal.sent("FunctionCallCancel")) == 1
    assert len(modal.calls) == 1


@pytest.mark.parametrize(
    ("name", "rpc", "seconds"),
    [
        ("slow", "AppCountLogs", 100.0),
        ("slow", "AppFetchLogs", 100.0),
        ("slow", "AppGetLogs", 100.0),
        ("slow", "AppGetLogs", 0.0),
        ("exit-0", "FunctionGetOutputs", 100.0),
    ],
    ids=["counting", "fetching", "opening", "streaming", "result"],
)
def test_ctrl_c_in_the_log_leaves_the_run_alone(
    name: str,
    rpc: str,
    seconds: float,
    modal: FakeModal,
    client: Client,
    start: Start,
    recipe: Callable[..., str],
) -> None:
    client("train", recipe(name), "--on", "modal", "--detach")
    modal.wait_for(modal.output)
    known, modal.seconds[rpc] = len(modal.sent(rpc)), seconds
    follower = start("logs", f"runs/{name}", "--follow")
    modal.wait_for(lambda: len(modal.sent(rpc)) > known)
    assert interrupted(follower) == 130
    assert not modal.sent("FunctionCallCancel")


@pytest.mark.parametrize("rpc", ["VolumePutFiles2", "ImageGetOrCreate"], ids=["upload", "image"])
def test_ctrl_c_before_there_is_a_run_leaves_at_once(
    rpc: str, modal: FakeModal, start: Start, recipe: Callable[..., str]
) -> None:
    modal.seconds[rpc] = 100.0
    process = start("train", recipe("slow"), "--on", "modal")
    modal.wait_for(lambda: modal.sent(rpc))
    assert interrupted(process) == 130
    assert not modal.calls


def test_ctrl_c_in_a_pull_leaves_the_folder_as_it_is(
    modal: FakeModal, client: Client, start: Start, recipe: Callable[..., str], tmp_path: Path
) -> None:
    assert client("train", recipe("exit-0"), "--on", "modal").returncode == 0
    folder = tmp_path / "runs/exit-0"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    known, modal.seconds["VolumeGetFile2"] = len(modal.sent("VolumeGetFile2")), 100.0
    process = start("pull", "runs/exit-0")
    modal.wait_for(lambda: len(modal.sent("VolumeGetFile2")) > known)
    assert interrupted(process) == 130
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_modal_run_works_too(
    detach: tuple[str, ...], modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    command = ("run", *detach, "-m", "strop.modal_runs.entrypoint", "--recipe", recipe("exit-0"))
    done = client(*command, "--overrides", "modal.gpu=L4 train.output_dir=runs/mine", module="modal")
    assert done.returncode == 0, done.stdout + done.stderr
    assert gpus(modal) == [("L4", 1)]
    assert done.stdout.count("training on L4") == 1
    assert (tmp_path / "runs/mine/adapter").is_dir()


def test_modal_run_ends_with_the_remote_exit_code(modal: FakeModal, client: Client, recipe: Callable[..., str]) -> None:
    done = client("run", "-m", "strop.modal_runs.entrypoint", "--recipe", recipe("exit-3"), module="modal")
    assert done.returncode == 3
    missing = client("run", "-m", "strop.modal_runs.entrypoint", "--recipe", "none.yaml", module="modal")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stdout + missing.stderr


def test_no_secret_is_sent_written_or_printed(
    modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    done = client("train", recipe("exit-0", secrets=["huggingface"]), "--on", "modal")
    assert "HF_TOKEN is set" in done.stdout
    value = SECRETS["huggingface"]["HF_TOKEN"].encode()
    assert value not in (done.stdout + done.stderr).encode()
    assert not [name for name, request in modal.requests if value in request.SerializeToString()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if value in path.read_bytes()]


def test_a_damaged_adapter_replaces_nothing(
    modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    assert client("train", recipe("exit-0"), "--on", "modal").returncode == 0
    remote = next(modal.volume("strop-runs").glob("*/run/adapter/adapter_model.safetensors"))
    remote.write_bytes(b"wEights")
    refused = client("pull", "runs/exit-0")
    assert refused.returncode == 8
    assert "adapter_model.safetensors" in refused.stderr
    assert (tmp_path / "runs/exit-0/adapter/adapter_model.safetensors").read_bytes() == b"weights"


def test_a_pull_that_was_cut_off_is_completed(
    modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path
) -> None:
    assert client("train", recipe("exit-0"), "--on", "modal").returncode == 0
    run = tmp_path / "runs/exit-0"
    (run / "evaluation.json").write_text("mine")
    run.rename(run.with_name(".replaced-exit-0"))
    (run.with_name(".pulling-exit-0")).mkdir()
    assert client("pull", "runs/exit-0").returncode == 0
    assert (run / "evaluation.json").read_text() == "mine"
    assert [path.name for path in run.parent.iterdir()] == ["exit-0"]


def test_mistakes_get_one_message(modal: FakeModal, client: Client, recipe: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs/exit-0").mkdir(parents=True)
    (tmp_path / "runs/exit-0/something").touch()
    taken = client("train", recipe("exit-0"), "--on", "modal")
    alone = client("train", "exit-0.yaml", "--detach")
    stranger = client("logs", "runs/exit-0")
    for done, words in ((taken, "runs/exit-0"), (alone, "--on modal"), (stranger, "modal.json")):
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_what_modal_refuses_is_said_in_one_message(
    modal: FakeModal, client: Client, recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_secret = client("train", recipe("other", secrets="none"), "--on", "modal")
    monkeypatch.setattr(
        FakeModal,
        "client_env",
        property(lambda fake: {"MODAL_SERVER_URL": fake.url, "HOME": "/none", "MODAL_CONFIG_PATH": "/none"}),
    )
    anonymous = client("train", "other.yaml", "--on", "modal")
    for done, words in ((no_secret, "none"), (anonymous, "modal setup")):
        assert done.returncode == 8, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
