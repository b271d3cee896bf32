"""Secrets planted in the environment and in the tracking URI: looked for in every byte that a campaign writes or prints."""

from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustkd.cli import main
from robustkd.redaction import redacted, redacted_command
from support.campaigns import PLAIN, tiny_campaign
from support.tracked_campaign import SECRET

PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "planted-user",
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-password",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "AWS_ACCESS_KEY_ID": f"{SECRET}-key-id",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-secret-key",
    "HF_TOKEN": f"{SECRET}-hub",
    "SOME_API_KEY": f"{SECRET}-api",
    "MY_PW": f"{SECRET}-pw",
    "STRIPE_KEY": f"{SECRET}-stripe",
    "NPM_AUTH": f"{SECRET}-npm",
}
TINY = tiny_campaign(train=60, defenses={**PLAIN, "leaky": "{kind: external, code: 'net.py:build'}"})
# A model that fails with whatever it finds in the environment.
LEAKY = "import os\ndef build(): raise RuntimeError('cannot log in: ' + ' '.join(os.environ.values()))\n"


class Tells(http.server.BaseHTTPRequestHandler):
    """Refuses everybody, and says with what they came."""

    def answer(self) -> None:
        given = self.headers.get("Authorization", "")
        body = json.dumps({"error_code": "UNAUTHENTICATED", "message": f"no: {given} {_decoded(given)}"}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


def _decoded(given: str) -> str:
    try:
        return base64.b64decode(given.partition(" ")[2]).decode()
    except ValueError:
        return ""


@pytest.fixture
def refusing() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tells) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def campaign(folder: Path, monkeypatch, capfd) -> str:
    """Run a campaign with everything planted; returns what was printed."""
    monkeypatch.chdir(folder)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    Path("tiny.yaml").write_text(TINY)
    Path("net.py").write_text(LEAKY)
    monkeypatch.setattr(sys, "argv", ["robustkd", "run", "tiny.yaml", "--workers", "0", "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = "".join(capfd.readouterr())
    assert stop.value.code == 3  # the leaky model has no result
    assert "cannot log in" in printed, printed[-3000:]
    return printed


def leaks(folder: Path, printed: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [str(path) for path in files if SECRET.encode() in path.read_bytes()] + ["printed"] * (SECRET in printed)


def test_nothing_leaks_into_files_or_mlflow(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    printed = campaign(tmp_path, monkeypatch, capfd)
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert (tmp_path / "runs" / "mlartifacts").is_dir()
    assert leaks(tmp_path, printed) == []


def test_nothing_leaks_when_a_server_refuses_and_tells(tmp_path, monkeypatch, capfd, refusing):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:{SECRET}-in-uri@127.0.0.1:{refusing}")
    printed = campaign(tmp_path, monkeypatch, capfd)
    assert "MLflow tracking stopped" in printed
    assert leaks(tmp_path, printed) == []


@pytest.mark.slow
def test_nothing_leaks_into_a_server(tmp_path, monkeypatch, capfd, server):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    away = server(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away.uri.replace("//", f"//bob:{SECRET}-in-uri@"))
    printed = campaign(tmp_path, monkeypatch, capfd)
    assert "tracking stopped" not in printed
    assert leaks(tmp_path, printed) + leaks(away.folder, printed) == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://u:p@ss@host:5432/db", "postgresql://***@host:5432/db"),
        ("http://token@host/x", "http://***@host/x"),
        ("http://host/a@b", "http://host/a@b"),
        ("x?password=abc&y=1", "x?password=***&y=1"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("the key is aaaa-bbbb", "the key is ***"),
        ("bob's pa55word% is wrong", "bob's *** is wrong"),
        ("what pw-of-mine, key-of-mine, auth-of-mine and pass-of-mine open", "what ***, ***, *** and *** open"),
        ("false", "false"),
        ("in /home/bob with /tmp/agent.1", "in /home/bob with /tmp/agent.1"),
    ],
)
def test_credentials_are_cut_out(text, clean, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "aaaa-bbbb")
    monkeypatch.setenv("STORE", "postgresql://bob:pa55word%25@host/db")
    for name, value in {
        "MY_PW": "pw-of-mine",
        "STRIPE_KEY": "key-of-mine",
        "NPM_AUTH": "auth-of-mine",
        "DB_PASS": "pass-of-mine",
    }.items():
        monkeypatch.setenv(name, value)
    # Names of which only a part speaks of a secret.
    for name, value in {"TOKENIZERS_PARALLELISM": "false", "PWD": "/home/bob", "SSH_AUTH_SOCK": "/tmp/agent.1"}.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == clean


def test_a_command_line_is_written_without_secrets():
    given = ["robustkd", "run", "x.yaml", "--api-token", "abc", "--uri", "http://a:b@c/d", "--password=abc"]
    clean = ["robustkd", "run", "x.yaml", "--api-token", "***", "--uri", "http://***@c/d", "--password=***"]
    assert redacted_command(given) == clean
