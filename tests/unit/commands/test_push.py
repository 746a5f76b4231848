"""`srum-ds push` against a hub of our own on this machine: what is uploaded, to whom it is shown, what is said."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from srum_ds.commands.main import main
from tests.support.tiny_models import write_tiny_bagel

Captured = pytest.CaptureFixture[str]
TOKEN = "hf_notarealtokenatall"


class Hub(ThreadingHTTPServer):
    """Answers as the hub does to a client that makes a repository and uploads to it; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.private = True
        self.refuses = False
        self.made: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Of a repository: whether it is private."""
        self._answer({"id": "me/drawer", "private": self.server.private, "sha": "1" * 40, "siblings": []})

    def do_PUT(self) -> None:
        """A large file's bytes."""
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        """Making a repository, asking how files travel, sending them, committing."""
        hub, body = self.server, self._body()
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            self._answer({"error": "You don't have the rights to do this"}, 403)
        elif self.path == "/api/repos/create":
            hub.made = json.loads(body)
            self._answer({"url": f"{hub.url}/me/drawer"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": _mode(p), "shouldIgnore": False} for p in files]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/put"}}} for one in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
                if said["key"] == "lfsFile":
                    hub.large.add(said["value"]["path"])
            self._answer({"commitUrl": f"{hub.url}/me/drawer/commit/{'2' * 40}", "commitOid": "2" * 40})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, said: Any, status: int = 200) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.url, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an export; nobody writes there."""
    run = tmp_path_factory.mktemp("drawer")
    (run / "config.yaml").write_text("run: {}\n")
    export = write_tiny_bagel(run / "export")
    (export / "README.md").write_text("---\nlicense: unknown\n---\n# drawer\n")
    (export / ".lock").write_text("")
    (export / "images").mkdir()
    (export / "images" / "a-red-cat.png").write_bytes(b"drawn here")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "drawer")


def shown(hub: Hub) -> str:
    """To whom a repository was asked to be shown; clients have said it in two ways."""
    private = hub.made.get("private", hub.made.get("visibility") == "private")
    return "private" if private else "public"


def test_a_runs_export_goes_to_a_private_repository(hub: Hub, run: Path, capsys: Captured) -> None:
    assert main(["push", str(run), "me/drawer"]) == 0
    printed, told = capsys.readouterr()
    assert "to me/drawer (private)" in printed and f"{hub.url}/me/drawer/commit/" in printed
    assert (hub.made["name"], hub.made["organization"], shown(hub)) == ("drawer", "me", "private")
    there = {path.name for path in (run / "export").iterdir()} - {".lock", "images"}
    assert set(hub.files) | hub.large == there and any(name.endswith(".safetensors") for name in hub.large)
    assert hub.files["README.md"] == (run / "export" / "README.md").read_bytes()
    assert f"Bearer {TOKEN}" in hub.tokens and TOKEN not in printed + told


def test_a_public_repository_wants_to_be_allowed(hub: Hub, run: Path, capsys: Captured) -> None:
    hub.private = False
    assert main(["push", str(run / "export"), "me/drawer"]) == 2
    assert "is public already" in capsys.readouterr().err and not hub.files
    assert main(["push", str(run / "export"), "me/drawer", "--public"]) == 0
    assert shown(hub) == "public" and "README.md" in hub.files


def test_a_refusal_is_one_line_without_the_token(hub: Hub, run: Path, capsys: Captured) -> None:
    hub.refuses = True
    assert main(["push", str(run), "me/drawer"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "me/drawer: the hub refused" in told and TOKEN not in told


def test_without_network_token_or_permission_to_use_it_one_line_says_so(
    hub: Hub, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> None:
        def create_repo(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)

    for error, said in (
        (ConnectionError(f"no route for {TOKEN}\nsecond line"), "cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.HFValidationError("Repo id must be in the form"), "is no repository's name"),
    ):
        fails(error)
        assert main(["push", str(run), "me/drawer"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and said in told and TOKEN not in told
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "me/drawer"]) == 2
    assert "run `hf auth login`" in capsys.readouterr().err


def test_a_dry_run_lists_the_files_and_asks_nobody(
    run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: pytest.fail("it asks for a token"))
    assert main(["push", str(run), "me/drawer", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would upload" in printed and "README.md" in printed and "a-red-cat" not in printed


def test_what_is_no_export_is_refused_before_the_hub_is_asked(run: Path, tmp_path: Path, capsys: Captured) -> None:
    (run / "export" / "README.md").unlink()
    for folder, said in (
        (run, "has no README.md"),
        (tmp_path / "none", "no exported model there"),
        (tmp_path, "is of no known design"),
    ):
        assert main(["push", str(folder), "me/drawer"]) == 2
        assert said in capsys.readouterr().err
