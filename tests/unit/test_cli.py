"""What the command line makes of an exception: one message and an exit code, or a traceback for a bug."""

import pytest
import torch

from strop import cli
from strop.errors import DataError

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def ends(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("rows.jsonl:3: no answer"), 3, "rows.jsonl:3: no answer"),
        (CUDA, 6, "CUDA out of memory. Is another program using it?"),
        (MemoryError(), 6, "this machine's memory does not suffice"),
    ],
)
def test_it_is_told_in_one_message(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error, monkeypatch) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        cli.main()
