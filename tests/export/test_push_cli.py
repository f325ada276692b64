"""`ldm push` and scripts/export_to_hub.py, and loading the pushed model with diffusers and `ldm generate`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.pipeline.pipeline import Pipeline
from tests.support.hub_server import TOKEN, HubServer
from tests.support.tiny_models import make_sd1, make_sd2
from tests.support.tiny_push import SENT, given_folder, given_hub, make_folder  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[2]


def push(*arguments: object, output: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["push", *map(str, arguments)], input=output)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert TOKEN not in result.output
    return result


def test_a_dry_run_lists_and_sends_nothing(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(folder, "ann/model", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == SENT
    assert lines[6] == "    4.1 kB  unet/diffusion_pytorch_model.safetensors"
    assert lines[-1].endswith("in 7 files; nothing was sent")
    assert hub.requests == []


def test_a_dry_run_lists_all_private_data(hub: HubServer, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "README.md").write_text(f"/home/bob/a /home/bob/b\n{TOKEN}")
    (folder / "optimizer.bin").write_bytes(b"x")
    result = push(folder, "ann/model", "--dry-run")
    assert result.exit_code == 2
    assert "  left out  optimizer.bin" in result.stdout
    assert result.stderr.splitlines() == [
        "private: README.md (line 2): a token, hf_a...",
        "private: README.md (line 1): an absolute path, /home/bob/a",
        "private: README.md (line 1): an absolute path, /home/bob/b",
        "error: 3 private things were found: remove them, or export the model again",
    ]
    assert push(folder, "ann/model", "--yes").exit_code == 2
    assert hub.requests == []


@pytest.mark.parametrize(
    ("output", "code", "told"),
    [("n\n", 1, "nothing was sent"), ("", 2, "error: nothing was sent, because nobody answered: add --yes")],
)
def test_without_a_yes_nothing_is_sent(
    hub: HubServer, folder: Path, output: str, code: int, told: str
) -> None:
    result = push(folder, "ann/model", output=output)
    assert result.exit_code == code
    assert "to ann/model (private)?" in result.stderr
    assert told in result.stderr
    assert hub.requests == []


def test_with_a_yes_it_is_sent(hub: HubServer, folder: Path) -> None:
    result = push(folder, "ann/model", output="y\n")
    assert result.exit_code == 0
    revision = hub.store.repositories["ann/model"].refs["main"]
    assert f"{hub.url}/ann/model/commit/{revision}: 7 files, " in result.stdout
    assert result.stdout.endswith(" kB, arrived intact\n")
    assert sorted(hub.store.files("ann/model")) == SENT


def test_every_option_reaches_the_hub(hub: HubServer, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    assert push(folder, "ann/model", "--public", "--yes").exit_code == 0
    repository = hub.store.repositories["ann/model"]
    assert not repository.private
    repository.refs["try"] = repository.refs["main"]
    (folder / "ldm.json").unlink()
    (folder / "LICENSE").write_text("free")
    result = push(folder, "ann/model", "--public", "--yes", "--revision", "try")
    assert result.stderr == "note: ann/model also has older files: ldm.json\n"
    assert "LICENSE" in hub.store.files("ann/model", "try")
    assert "LICENSE" not in hub.store.files("ann/model")
    assert "/discussions/1:" in push(folder, "ann/model", "--public", "--yes", "--create-pr").stdout
    assert "LICENSE" in hub.store.files("ann/model", "refs/pr/1")


def test_a_refusal_is_one_line(hub: HubServer, folder: Path) -> None:
    result = push(folder, "bea/model", "--yes")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: the token has no permission for this on bea/model (403: You don't have"
    )
    assert result.stderr.count("\n") == 1


# In separate processes, as users run them


@pytest.fixture(name="outside")
def given_environment(tmp_path: Path) -> Iterator[tuple[HubServer, dict[str, str]]]:
    """A Hub, and the environment of a process that uses it with an empty cache."""
    with HubServer() as server:
        unset = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
        kept = {key: value for key, value in os.environ.items() if key not in unset}
        hub = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        quiet = {"HF_HUB_DISABLE_XET": "1", "CUDA_VISIBLE_DEVICES": ""}
        yield server, {**kept, **hub, **quiet, "PYTHONPATH": str(ROOT)}


def run(environment: dict[str, str], *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def test_no_telemetry_is_sent(outside: tuple[HubServer, dict[str, str]], folder: Path) -> None:
    hub, environment = outside
    run(environment, "-m", "ldm", "push", folder, "ann/model", "--public", "--yes", cwd=folder)
    paths = {request.path for request in hub.requests}
    assert any("/api/models/ann/model" in path for path in paths)
    assert not [path for path in paths if "telemetry" in path or "agent" in path]


def pixels(path: Path) -> np.ndarray:
    """[H, W, 3]"""
    with Image.open(path) as image:
        return np.asarray(image)


STOCK = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
picture = pipeline("a red apple", height=16, width=16, num_inference_steps=2, generator=torch.manual_seed(1))
picture.images[0].save(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_sd1, make_sd2])
def test_what_was_pushed_draws_the_same(
    outside: tuple[HubServer, dict[str, str]], tmp_path: Path, make: type
) -> None:
    hub, environment = outside
    hub.multipart_above = 100_000
    Pipeline(make(tmp_path / "tokenizer")).save(tmp_path / "model")
    told = run(environment, "-m", "ldm", "push", "model", "ann/model", "--yes", cwd=tmp_path)
    assert told.startswith(f"{hub.url}/ann/model/commit/")
    assert hub.asked("POST", "/complete/")

    for name, output in (("model", "here"), ("ann/model", "there")):
        run(environment, "-c", STOCK, name, tmp_path / f"{output}.png", cwd=tmp_path)
        options = ("--model", name, "--num-inference-steps", 2, "--output", output)
        run(environment, "-m", "ldm", "generate", "a red apple", *options, cwd=tmp_path)
    assert (pixels(tmp_path / "here.png") == pixels(tmp_path / "there.png")).all()
    (made,) = (tmp_path / "here").glob("*.png")
    assert (pixels(made) == pixels(tmp_path / "there" / made.name)).all()
    assert hub.asked("GET", "/ann/model/resolve/")


@pytest.mark.slow
def test_a_push_by_xet(outside: tuple[HubServer, dict[str, str]], tmp_path: Path) -> None:
    hub, environment = outside
    hub.xet_folder = tmp_path / "cas"
    folder = make_folder(tmp_path / "model")
    arguments = ("-m", "ldm", "push", folder, "ann/model", "--yes")
    told = run({**environment, "HF_HUB_DISABLE_XET": "0"}, *arguments, cwd=tmp_path)
    assert "arrived intact" in told
    assert list((tmp_path / "cas").rglob("*"))
    assert not hub.asked("PUT", "/storage/")


@pytest.mark.slow
def test_a_run_is_exported_and_sent_by_the_script(
    outside: tuple[HubServer, dict[str, str]], tmp_path: Path
) -> None:
    hub, environment = outside
    Pipeline(make_sd1(tmp_path / "tokenizer")).save(tmp_path / "run" / "pipeline")
    script = ROOT / "scripts" / "export_to_hub.py"
    told = run(environment, script, "run", "dest", "ann/model", "--licence", "mit", cwd=tmp_path)
    assert told.splitlines()[-1].endswith("files, arrived intact")
    sent = hub.store.files("ann/model")
    assert {"export.json", "model_index.json", "unet/config.json"} <= sent.keys()
    assert sent == {name: (tmp_path / "dest" / name).read_bytes() for name in sent}
    assert hub.store.repositories["ann/model"].private
