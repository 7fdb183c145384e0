import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from run_folders import write_run
from strop import Run
from strop.commands.report import page_server
from strop.errors import RecipeError
from strop.reporting import report_server as serve
from strop.reporting.report_server import PageServer
from waiting import PATIENCE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    monkeypatch.setattr(serve, "_FRESH_SECONDS", 0.0)
    with page_server([Run(folder)]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: PageServer, method: str = "GET", path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def test_it_listens_on_this_machine_only_and_serves_the_page(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    answer = ask(server)
    assert answer.status == 200
    policy = str(answer.headers["Content-Security-Policy"])
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert b"data-live" in answer.read()
    assert ask(server, Host=f"localhost:{server.server_port}").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{}", "", "[::1]:{}"]
)
def test_another_host_is_refused(server: PageServer, host: str) -> None:
    answer = ask(server, Host=host.format(server.server_port))
    assert answer.status == 421
    assert b"<html" not in answer.read()


@pytest.mark.parametrize("path", ["/run.json", "/../recipe.yaml", "/%2e%2e/run.json", "/report", "/?x", "*"])
def test_there_is_no_other_page(server: PageServer, path: str) -> None:
    assert ask(server, path=path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_there_is_no_other_method(server: PageServer, method: str) -> None:
    assert ask(server, method).status == 501


def test_an_unchanged_page_is_not_sent_again(server: PageServer, folder: Path) -> None:
    tag = str(ask(server).headers["ETag"])
    assert ask(server, If_None_Match=tag).status == 304
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 31, "loss": 0.01}\n')
    assert ask(server, If_None_Match=tag).status == 200


def test_a_run_that_goes_away_is_said_so(server: PageServer, folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    answer = ask(server)
    assert (answer.status, b"is not a run folder" in answer.read()) == (503, True)


def test_a_port_that_is_taken_is_an_error(server: PageServer, folder: Path) -> None:
    for port in (server.server_port, 70_000):
        with pytest.raises(RecipeError, match=f"--port {port}"):
            page_server([Run(folder)], port)
