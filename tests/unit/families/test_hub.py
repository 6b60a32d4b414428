"""Downloading: a hub of our own on this machine, asked through the hub's real library in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

NAME = "somebody/dog-diffusion"
REVISION = "0123456789abcdef0123456789abcdef01234567"
CONFIGURATIONS = {
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json",
}  # fmt: skip
ASK = (
    "import sys; from limner.families.source import files_of; print(files_of(sys.argv[1], weights=sys.argv[2] == '1'))"
)

ASK_PART = "import sys; from limner.families.source import part_of; print(part_of('preview.decoder', sys.argv[1], ''))"


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub's library asks of one model: its description, its tree and its files."""

    root: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        files = {p.relative_to(self.root).as_posix(): p for p in self.root.rglob("*") if p.is_file()}
        file = files.get(path.removeprefix(f"/{NAME}/resolve/{REVISION}/"))
        if file:
            self.answer(file.read_bytes())
            if self.command == "GET":
                self.served.append(file.relative_to(self.root).as_posix())
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self.answer(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": p.stat().st_size,
                        "oid": hashlib.sha1(name.encode()).hexdigest(),
                    }
                    for name, p in files.items()
                ]
            )
        elif path.startswith(f"/api/models/{NAME}"):
            self.answer({"id": NAME, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]})
        else:
            self.answer({"error": "Repository not found"}, 404)

    def answer(self, value: object, status: int = 200) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def hub(random_base: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.root, Hub.served = random_base, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(hub: ThreadingHTTPServer, home: Path, name: str, *, weights: bool, offline: bool = False) -> tuple[str, str]:
    """Return the last lines that a fresh process prints and complains when it looks for a base."""
    told = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", ASK, name, str(int(weights))]
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[-1], (done.stderr.splitlines() or [""])[-1]


def test_only_what_is_needed_is_downloaded_and_then_kept(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder, _ = ask(hub, tmp_path, NAME, weights=False)
    assert set(Hub.served) == CONFIGURATIONS
    again, complaint = ask(hub, tmp_path, NAME, weights=True)
    assert (again, complaint) == (folder, "")
    weights = {name for name in Hub.served if name.endswith(".safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    Hub.served.clear()
    assert ask(hub, tmp_path, NAME, weights=True, offline=True) == (folder, "")
    assert not Hub.served


def test_of_a_small_decoder_two_files_are_downloaded_and_then_kept(
    hub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.random_base import make_small_decoder

    Hub.root = make_small_decoder(tmp_path / "decoder")
    for name in ("diffusion_pytorch_model.bin", "taesd.png"):
        (Hub.root / name).write_bytes(b"more")
    monkeypatch.setattr(f"{__name__}.ASK", ASK_PART)
    folder, complaint = ask(hub, tmp_path, NAME, weights=True)
    assert complaint == ""
    assert sorted(Hub.served) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert ask(hub, tmp_path, NAME, weights=True, offline=True) == (folder, "")
    (Path(folder) / "diffusion_pytorch_model.safetensors").unlink()
    _, complaint = ask(hub, tmp_path, NAME, weights=True, offline=True)
    assert f"Put the file at {folder}/diffusion_pytorch_model.safetensors, or run once with a network." in complaint


def test_a_model_that_the_hub_does_not_have_is_said(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert "base='no/such-model': the hub has no such model." in ask(hub, tmp_path, "no/such-model", weights=True)[1]
