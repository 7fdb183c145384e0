"""`strop doctor` finds what is there, says what to do about what is not, and shows no secret."""

import shutil
from pathlib import Path

import pytest
import torch

from silent_hub import silent_hub
from strop.commands import doctor
from strop.recipe import load_recipe
from tiny_models import write_checkpoint


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-secret")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-secret")
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("strop.resolve.NETWORK_TIMEOUT", 0.2)
    monkeypatch.setattr("strop.resolve._unanswered", {})

    def found(recipe=None) -> dict[str, doctor.Finding]:
        return {finding.topic: finding for finding in doctor.doctor(recipe)}

    return found


def test_everything_is_looked_at_and_no_secret_is_shown(report) -> None:
    found = report()
    assert {"strop", "packages", "extras", "engine", "layers", "cache", "runs", "hub", "Modal"} <= found.keys()
    assert f"torch {torch.__version__}" in found["packages"].value
    assert str(Path("runs").absolute()) in found["runs"].value
    assert "a token is set" in found["hub"].value
    assert "secret" not in "".join(map(str, found.values()))


def test_without_a_network_the_hub_is_not_asked(report, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("asked"))
    assert "HF_HUB_OFFLINE" in report()["hub"].value


def test_a_hub_that_says_nothing_is_said_to_be_out_of_reach(report, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with silent_hub() as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        found = report()["hub"]
    assert found.value.startswith("cannot be reached (TimeoutError)")
    assert "local folder" in (found.advice or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is wrong where torch sees no GPU")
@pytest.mark.parametrize(
    ("driver", "build", "says", "advice"),
    [
        (None, None, "none (torch is built for the CPU)", None),
        ("580.1", None, "driver 580.1, but torch is built for the CPU", "install torch's CUDA build"),
        ("470.2", "13.0", "driver 470.2; torch is built for CUDA 13.0 and cannot use it", "update the driver"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(
    driver: str | None, build: str | None, says: str, advice: str | None, report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", build)
    found = report()["GPU"]
    assert found.value == says
    assert (found.advice or "").startswith(advice or "")
    assert bool(found.advice) == bool(advice)


def test_a_full_disk_is_pointed_out(report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report()["cache"].advice is None or "GiB" in report()["cache"].value
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 2**30))  # type: ignore[attr-defined]
    found = report()["cache"]
    assert "1 GiB free" in found.value
    assert found.advice


def test_the_choice_is_the_recipes(report, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama3")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    keys = {"model.model_name_or_path": str(folder), "data.train_file": str(rows)}
    recipe = load_recipe("demo", keys | {"model.precision": "bfloat16"})
    assert report(recipe)["engine"].value == "precision bfloat16: as the recipe says"
    missing = load_recipe("demo", keys | {"model.model_name_or_path": str(tmp_path / "nothing")})
    assert "cannot be trained here" in report(missing)["engine"].value
    assert "nothing" in report(missing)["engine"].advice
