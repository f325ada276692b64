"""The guides' marked commands are run, in this process to save time."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from tests.support.documents import ROOT, marked_blocks

GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
BLOCKS = [
    pytest.param(block, id=guide.name)
    for guide in GUIDES
    for block in marked_blocks(guide.read_text(encoding="utf-8"), "bash")
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        if program == "python":
            exec(arguments[1], {})  # of `python -c`
            continue
        assert program == "ldm"
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output


def test_there_are_blocks() -> None:
    assert [block.id for block in BLOCKS] == ["edit.md", "inpaint.md", "prompts.md"]
