"""The marked code blocks of README and guides, which tests run."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from ldm.cli.app import app

ROOT = Path(__file__).parents[2]


def marked_blocks(text: str, language: str) -> list[str]:
    """The code blocks that directly follow a line `<!-- test -->`."""
    return re.findall(rf"^<!-- test -->\n```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_here(block: str) -> None:
    """Run a block's commands in this process, to save time; asserts that all succeed."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        if program == "python":
            exec(arguments[1], {})  # of `python -c`
            continue
        assert program == "ldm"
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
