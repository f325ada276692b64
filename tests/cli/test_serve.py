"""`ldm serve`: what is refused before it starts; that it starts, makes an image and stops."""

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli import serve
from ldm.cli.app import app
from ldm.io.locks import holder
from tests.support.tiny_runs import AUTOENCODER, write_config, write_squares


def error_of(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_machines_need_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LDM_TOKEN", raising=False)
    said = error_of("--host", host)
    assert (
        said == f"error: --host {host} lets other machines in: add --token random, or a token of your own; "
        "--public if anyone may use it\n"
    )


@pytest.mark.parametrize(
    "token", ["short", "with space in it", "semicolon;semicolon", "passwörter-mit-umlaut"]
)
def test_a_token_must_be_hard_to_guess_and_fit_into_a_header(token: str) -> None:
    assert "the token must be at least 8 ASCII letters" in error_of("--token", token)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in error_of("--port", port)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serve.PACKAGES, "no_such_module", "no-such-package")
    assert error_of() == "error: ldm serve needs no-such-package: pip install no-such-package\n"


def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    said = error_of(tmp_path / "nothing", "--port", 0)
    assert "nothing" in said and said.count("\n") == 1


def test_what_cannot_sign_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_IDENTITY_DIR", str(tmp_path))
    assert "no identity to sign with: make one with `ldm provenance init`" in error_of("--sign", "--port", 0)
    assert "--sign-prompts without --sign: add --sign" in error_of("--sign-prompts", "--port", 0)


@pytest.mark.slow
def test_the_first_image_is_there_within_ten_seconds(tmp_path: Path) -> None:
    """Or on a slow or busy machine, not much later than from `ldm generate`."""
    start = time.monotonic()
    ldm = [sys.executable, "-m", "ldm"]
    output = tmp_path / "made"
    subprocess.run([*ldm, "generate", "a red apple", "--seed", "7", "-q", "--output", output], check=True)
    alone, start = time.monotonic() - start, time.monotonic()
    command = [*ldm, "serve", "--port", "0", "--token", "random"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        token = process.stdout.readline().removeprefix("token: ").strip()
        request = urllib.request.Request(
            f"{url}/v1/images/generations",
            json.dumps({"prompt": "a red apple", "seed": 7}).encode(),
            {"authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            made = json.load(answer)
        took = time.monotonic() - start
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    (file,) = output.iterdir()
    assert base64.b64decode(made["data"][0]["b64_json"]) == file.read_bytes()
    assert took < max(10, 1.5 * alone), f"the first image took {took:.1f} s, and {alone:.1f} s alone"


@pytest.mark.slow
def test_a_training_that_the_page_started_is_saved_when_the_server_ends(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data")
    changes = {"num_steps": 100_000, "save_every": 100_000, "preview_every": 100_000}
    config = write_config(tmp_path / "squares.yaml", AUTOENCODER, data, tmp_path / "squares", **changes)
    command = [sys.executable, "-m", "ldm", "serve", "--port", "0", "--run", config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        urllib.request.urlopen(urllib.request.Request(f"{url}/ldm/runs/0/start", method="POST")).close()
        end = time.monotonic() + 120
        while json.load(urllib.request.urlopen(f"{url}/ldm/runs/0"))["step"] < 3:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert "waiting until the training has saved: squares" in process.stderr.read()
    assert holder(tmp_path / "squares") is None
    (saved,) = (tmp_path / "squares" / "checkpoints").iterdir()
    assert saved.name.startswith("step-")
