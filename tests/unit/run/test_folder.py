"""One process at a time in a run folder, nobody else's files, and no run continued as another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from run_folders import train_record
from strop.errors import CheckpointError, RecipeError
from strop.run.folder import RunFolder
from strop.run.identity import refuse_changes
from strop.run.listing import list_runs
from strop.run.records import EvalRecord, MetricsLog
from waiting import PATIENCE

MARKS = {"data": "d" * 64, "base model": "b" * 64}


def begin(folder: RunFolder, device: str = "cpu") -> list[str]:
    return folder.begin_attempt(device=device, chosen={}, fingerprints=MARKS, num_trainable=123, num_steps=60)


def claim_in_child(path: Path) -> int:
    """Fork a process that claims the folder and stays; returns its pid once it has it."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with RunFolder(path).claim():
            begin(RunFolder(path))
            os.write(told, b"x")
            time.sleep(PATIENCE)
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(told)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_manifest_says_what_ran_and_where(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claim():
        assert folder.status is None
        assert begin(folder) == []
        assert folder.status == "running"
        folder.set_status("finished")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["attempts"] == 1
    assert manifest["fingerprints"] == MARKS
    assert manifest["num_trainable"] == 123
    assert {"run_id", "created", "strop", "python", "torch", "platform", "device"} <= set(manifest)


def test_a_second_attempt_keeps_the_identity_and_tells_of_another_device(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claim():
        begin(folder, "H100")
        first = folder.begun
        changes = begin(folder, "H200")
    assert len(changes) == 1
    assert "H100" in changes[0]
    assert "H200" in changes[0]
    assert first.run_id
    assert (folder.begun.run_id, folder.begun.created) == (first.run_id, first.created)
    assert folder.begun.attempts == 2


def test_a_second_process_is_turned_away_at_once_with_the_pid_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting: the first one keeps the folder for minutes."""
    pid = claim_in_child(tmp_path / "run")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
    try:
        with pytest.raises(RecipeError, match=rf"another strop process \(pid {pid}\) is writing to"):
            with RunFolder(tmp_path / "run").claim():
                pass
    finally:
        end(pid)


def test_the_lock_of_a_killed_process_is_free_and_its_run_interrupted(tmp_path: Path) -> None:
    pid = claim_in_child(tmp_path / "run")
    assert RunFolder(tmp_path / "run").status == "running"
    end(pid)
    assert RunFolder(tmp_path / "run").status == "interrupted"
    with RunFolder(tmp_path / "run").claim():
        assert (tmp_path / "run" / "run.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("name", ["thesis.docx", "recipe.yaml", "metrics.jsonl", ".git"])
def test_a_folder_of_someone_elses_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RecipeError, match=name):
        with RunFolder(tmp_path).claim():
            pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_died_before_its_manifest_can_begin_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").claim():
        RunFolder(tmp_path / "run").write_recipe("name: x\n")
    with RunFolder(tmp_path / "run").claim():
        begin(RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_dir_that_cannot_be_is_one_message(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"train\.output_dir"):
        with RunFolder(tmp_path / where).claim():
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3"])
def test_a_damaged_manifest_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        _ = RunFolder(tmp_path).manifest


def test_the_same_inputs_continue() -> None:
    refuse_changes(MARKS, dict(MARKS), [])


@pytest.mark.parametrize("name", sorted(MARKS))
def test_each_changed_input_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=name) as caught:
        refuse_changes(MARKS, MARKS | {name: "e" * 64}, [])
    (other,) = set(MARKS) - {name}
    assert other not in str(caught.value)
    assert "output_dir" in str(caught.value)


def test_an_input_that_came_or_went_is_named() -> None:
    with pytest.raises(CheckpointError, match="held-out data"):
        refuse_changes(MARKS, MARKS | {"held-out data": "h" * 64}, [])
    with pytest.raises(CheckpointError, match="base model"):
        refuse_changes(MARKS, {"data": MARKS["data"]}, [])


def test_the_changed_recipe_keys_are_listed() -> None:
    with pytest.raises(CheckpointError, match=r"train\.seed: 1 -> 2"):
        refuse_changes(MARKS, MARKS, ["train.seed: 1 -> 2"])


def test_runs_are_listed_broken_ones_too(tmp_path: Path) -> None:
    good = RunFolder(tmp_path / "good")
    with good.claim():
        begin(good)
        log = MetricsLog(good.metrics_path)
        for step, loss in ((1, 3.0), (2, 2.0)):
            log.append(train_record(step, loss=loss))
        for step, loss in ((1, 2.5), (2, 2.75)):
            log.append(EvalRecord(step, loss))
        good.set_status("finished")
    for name, manifest in {"damaged": b"{", "empty": b"{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(manifest)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "metrics.jsonl").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a file").write_text("")
    damaged, empty, listed, lost = list_runs(tmp_path)
    assert (lost.path.name, lost.status) == ("lost", "damaged"), "its run.json is gone"
    assert (damaged.path.name, damaged.status) == ("damaged", "damaged")
    assert (empty.status, empty.loss) == ("unknown", None)
    assert (listed.status, listed.step, listed.num_steps) == ("finished", 2, 60)
    assert (listed.loss, listed.base_loss, listed.eval_loss) == (2.0, None, 2.75)
    assert [run.path for run in list_runs(tmp_path / "good")] == [tmp_path / "good"]


def test_no_folder_to_list_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no folder"):
        list_runs(tmp_path / "nowhere")


def test_listing_runs_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys; from strop.run.listing import list_runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | _python_path(), check=False).returncode == 0


def _python_path() -> dict[str, str]:
    import strop

    assert strop.__file__ is not None
    return {"PYTHONPATH": str(Path(strop.__file__).parents[1])}
