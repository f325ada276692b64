"""docs/museum.md is what the docstrings of tests/museum/ say today."""

from pathlib import Path

import pytest

from tests.support.benchmark_folder import ROOT, script_module

museum = script_module("reference.museum")


def test_the_page_is_that_of_the_tests() -> None:
    made = museum.page(ROOT / "tests" / "museum")
    assert (ROOT / "docs" / "museum.md").read_text("utf-8") == made, "run `make reference`"


def test_a_new_entry_is_taken_up_and_needs_a_docstring(tmp_path: Path) -> None:
    path = tmp_path / "test_new.py"
    path.write_text(
        '"""A program\ndoes it wrong.\n\nThis is how.\n"""\n\ndef test_ours_is_right():\n    pass\n'
    )
    entry = museum.read_entry(path)
    assert (entry.title, entry.story, entry.tests) == (
        "A program does it wrong",
        "This is how.",
        ("ours is right",),
    )
    assert "## A program does it wrong\n\nThis is how.\n" in museum.page(tmp_path)
    path.write_text("def test_ours_is_right():\n    pass\n")
    with pytest.raises(ValueError, match="has no docstring"):
        museum.page(tmp_path)
