"""The marked code blocks of README and guides, which tests run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def marked_blocks(text: str, language: str) -> list[str]:
    """The code blocks that directly follow a line `<!-- test -->`."""
    return re.findall(rf"^<!-- test -->\n```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
