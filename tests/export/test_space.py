"""`ldm export --space`: a folder that serves the model by itself, as its Dockerfile says."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import ldm
import ldm.export.verify.compare
from ldm.cli.app import app
from ldm.export.space import write_space
from ldm.export.verify import readers
from ldm.models.loading.model import save_parts
from tests.support.tiny_models import make_sd1

TITLE = "Red & blue: apples"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Space of a tiny model."""
    root = tmp_path_factory.mktemp("space")
    save_parts(make_sd1(root / "tokenizer"), root / "tiny")
    words = ["--space", "--title", TITLE, "--license", "mit", "--num-samples", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ldm.export.verify.compare, "_run", lambda task, _: readers.main([str(task)]))
        done = CliRunner().invoke(app, ["export", str(root / "tiny"), str(root / "red apples"), *words])
    assert done.exit_code == 0, done.output
    return root / "red apples"


def test_the_hub_is_told_how_to_run_it(space: Path) -> None:
    _, head, text = (space / "README.md").read_text().split("---\n")
    facts = yaml.safe_load(head)
    assert (facts["sdk"], facts["app_port"], facts["title"], facts["license"]) == (
        "docker",
        7860,
        TITLE,
        "mit",
    )
    assert len(facts["short_description"]) <= 60
    assert (
        TITLE in text
        and "(red%20apples/README.md)" in text
        and (space / "red apples" / "README.md").is_file()
    )


def test_what_it_installs_is_what_runs_here(space: Path) -> None:
    first, *rest = (space / "requirements.txt").read_text().splitlines()
    assert first.startswith("--extra-index-url https://")
    pinned = dict(line.split("==") for line in rest)
    assert {"torch", "diffusers", "starlette", "uvicorn", "python-multipart"} < pinned.keys()
    assert "pytest" not in pinned and "openvino" not in pinned
    assert all(version(name).partition("+")[0] == number for name, number in pinned.items())


def test_it_has_our_code_without_the_embedded_models(space: Path) -> None:
    assert (space / "ldm" / "web" / "static" / "page.css").is_file()
    assert "Apache License" in (space / "ldm" / "LICENSE").read_text()
    assert not list((space / "ldm").rglob("*.safetensors"))


@pytest.mark.slow
def test_it_serves_the_model_to_anyone(space: Path) -> None:
    command = json.loads(re.search(r"^CMD (.+)$", (space / "Dockerfile").read_text(), re.MULTILINE)[1])  # type: ignore[index]
    here = {"python": sys.executable, "0.0.0.0": "127.0.0.1", "7860": "0"}
    with subprocess.Popen(
        [here.get(word, word) for word in command],
        cwd=space,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            made = asked(url, {"prompt": "a", "seed": 3, "num_inference_steps": 2})
        finally:
            server.send_signal(signal.SIGTERM)
    assert (space / "ldm" / "__pycache__").is_dir(), "it ran the code beside it"
    pipeline = ldm.load_pipeline(str(space / "red apples"))
    record = pipeline.generate("a", seed=3, num_inference_steps=2)
    record.save(space.parent / "images")
    (expected,) = (space.parent / "images").glob("*.png")
    assert made["data"][0]["url"].startswith("https://ann-apples.hf.space/")
    assert base64.b64decode(made["data"][0]["b64_json"]) == expected.read_bytes()


def asked(url: str, body: dict[str, Any]) -> Any:
    """What the page of a Space gets for a request, by the name that visitors know."""
    named = {"host": "ann-apples.hf.space", "origin": "https://ann-apples.hf.space"}
    named |= {"x-forwarded-for": "93.184.216.34", "x-forwarded-proto": "https"}
    request = urllib.request.Request(f"{url}/v1/images/generations", json.dumps(body).encode(), named)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "frame-ancestors *" in answer.headers["content-security-policy"]
        return json.load(answer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--format", "single-file"],
            "--space with --format single-file: a Space serves the format diffusers",
        ),
        (["--keep-lora-apart"], "--space with --keep-lora-apart: leave one out"),
        (["--push-to-hub", "ann/apples"], "hf upload ann/apples DEST --repo-type space"),
    ],
)
def test_what_a_space_cannot_be_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    dest = tmp_path / "made"
    done = CliRunner().invoke(app, ["export", "emoji", str(dest), "--space", *words])
    assert done.exit_code == 2 and said.replace("DEST", str(dest)) in done.stderr
    assert done.stderr.count("\n") == 1 and not dest.exists()


@pytest.mark.parametrize(
    ("name", "kept"), [("apples", "apples"), ("ldm", "model"), ("Dockerfile", "model"), ("-x", "model")]
)
def test_the_model_has_the_name_of_the_space_if_nothing_else_has(
    name: str, kept: str, tmp_path: Path
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    write_space(tmp_path, name, title=TITLE)
    assert (tmp_path / kept / "model_index.json").is_file()
    assert f'"./{kept}"' in (tmp_path / "Dockerfile").read_text()
    assert not list(tmp_path.glob(".tmp*"))
