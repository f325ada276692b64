"""The README's marked blocks are run; the links of all documents are followed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm.config import validate
from ldm.pipeline.record import read_settings
from tests.support.documents import ROOT, marked_blocks, run_here
from train.denoiser import DenoiserSettings

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_README_BYTES = 12_000


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder, where `ldm` is this checkout's; returns what it printed."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ldm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ldm "$@"\n')
    (programs / "ldm").chmod(0o755)
    search = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **search}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_marked_blocks_are_found() -> None:
    text = "```bash\na\n```\n<!-- test -->\n```bash\nb\nc\n```\n<!-- test -->\n```python\nd\n```\n"
    assert marked_blocks(text, "bash") == ["b\nc\n"]
    assert [len(marked_blocks(README, language)) for language in ("bash", "python", "yaml")] == [1, 1, 1]


@pytest.mark.parametrize("block", marked_blocks(README, "bash"))
def test_the_commands_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(block)
    made, again = ({path.name for path in (tmp_path / name).iterdir()} for name in ("outputs", "again"))
    assert again == {"0001-a-red-apple-s7.png"}
    assert again < made
    assert len(made) == 5  # two prompts, two seeds, and the grid
    first, second = (tmp_path / name / next(iter(again)) for name in ("outputs", "again"))
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


@pytest.mark.slow
def test_the_commands_for_use_elsewhere_run(tmp_path: Path) -> None:
    (block,) = marked_blocks(README.replace("<!-- slow test -->", "<!-- test -->"), "bash")[1:]
    said = run(["bash", "-euo", "pipefail", "-c", block], tmp_path)
    assert len(block.strip().splitlines()) == 4
    assert "read by diffusers" in said and "nothing was sent" in said
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"emoji", "half"}


@pytest.mark.parametrize("block", marked_blocks(README, "python"))
def test_the_python_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert "'seed': 7" in capsys.readouterr().out
    saved = sorted((tmp_path / "from-python").iterdir())
    assert [read_settings(path)["seed"] for path in saved] == [7, 8, 7, 8]


@pytest.mark.parametrize("block", marked_blocks(README, "yaml"))
def test_the_configuration_is_valid(block: str) -> None:
    settings = validate(DenoiserSettings, yaml.safe_load(block), where="README.md")
    assert settings.run_dir == Path("runs/photos")


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= MAX_README_BYTES


def broken_links(page: Path, root: Path) -> list[str]:
    """Relative links, and paths in backticks without a wildcard, that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    quoted = re.findall(r"`((?:docs|tests|configs|scripts|ldm|train)/[\w./-]+)`", text)
    return [link for link in links if link and not (page.parent / link).exists()] + [
        path for path in quoted if not (root / path).exists()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page, ROOT)


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "[a](page.md#top) [b](gone.md) [c](https://x.org) `docs/page.md` `docs/lost.md` `docs/*.md`"
    )
    assert broken_links(page, tmp_path) == ["gone.md", "docs/lost.md"]
