"""docs/museum.md, made from the docstrings of tests/museum/."""

import ast
from dataclasses import dataclass
from pathlib import Path

HEAD = """# The museum of defects

Written by `python scripts/museum.py` from the docstrings of `tests/museum/`.

Each entry is a defect of another program that gives a wrong result and no error. Its test has two halves: theirs is run
and shown to be wrong, and ours is shown to be right. If a new version of their program no longer has the defect, the
test is skipped and says so.
"""


@dataclass(frozen=True)
class Entry:
    """A defect.

    Attributes:
        title: the first sentence of the test's docstring.
        story: the rest, as Markdown.
        tests: what the tests are called, in words.
    """

    file: str
    title: str
    story: str
    tests: tuple[str, ...]


def read_entry(path: Path) -> Entry:
    """The entry of a test's file, which is parsed and not imported.

    Raises:
        ValueError: it has no docstring.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = ast.get_docstring(tree)
    if not told:
        raise ValueError(f"{path} has no docstring")
    title, _, story = told.partition("\n\n")
    names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
    tests = [name.removeprefix("test_").replace("_", " ") for name in names if name.startswith("test_")]
    return Entry(path.name, " ".join(title.split()).rstrip("."), story.strip(), tuple(tests))


def page(folder: Path) -> str:
    """docs/museum.md, with the entries of a folder of tests by name."""
    entries = [read_entry(path) for path in sorted(folder.glob("test_*.py"))]
    return "\n".join([HEAD, *map(_section, entries)])


def _section(entry: Entry) -> str:
    shown = "; ".join(f"*{test}*" for test in entry.tests)
    link = f"[`{entry.file}`](../tests/museum/{entry.file})"
    return "\n\n".join(filter(None, [f"## {entry.title}", entry.story, f"{link}: {shown}."])) + "\n"
