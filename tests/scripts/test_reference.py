"""docs/reference/ is what the code says today."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from tests.support.benchmark_folder import ROOT, script_module

pages, settings, python, markdown = (
    script_module(f"reference.{name}") for name in ("pages", "settings", "python", "markdown")
)
FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages.reference_pages()  # type: ignore[no-any-return]


def test_the_pages_are_those_of_the_code(generated: dict[str, str]) -> None:
    kept = {path.relative_to(FOLDER).as_posix(): path.read_text("utf-8") for path in FOLDER.rglob("*.md")}
    changed = {name for name in kept | generated if kept.get(name) != generated.get(name)}
    assert not changed, "run `make reference`"


def test_every_page_has_content(generated: dict[str, str]) -> None:
    assert "`--num-inference-steps N`" in generated["commands.md"]
    assert "## ldm data check" in generated["commands.md"]
    assert "| `num_inference_steps` | integer" in generated["generation-settings.md"]
    assert generated["training-settings.md"].count("| `optim.learning_rate` |") == 3
    assert "| `dpmpp_2m` |" in generated["formats.md"]
    assert "def load_pipeline(" in generated["python/ldm.pipeline.md"]
    assert "](python/ldm.pipeline.md)" in generated["README.md"]


def test_writing_replaces_and_removes_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "gone.md").write_text("old")
    monkeypatch.setattr(pages, "reference_pages", lambda: {"README.md": "new", "python/a.md": "a"})
    assert len(pages.write_reference(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.rglob("*.md")) == ["README.md", "a.md"]


class Inner(BaseModel):
    """Inner settings.

    More.
    """

    rate: float = Field(0.5, gt=0, description="a | b")


class Outer(BaseModel):
    mode: Literal["a", "b"] = "a"
    limit: int | None = Field(None, gt=0)
    pair: Annotated[tuple[float, float], "checked"] = (0.0, 1.0)
    path: Path
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()


def test_settings_are_listed_with_type_default_and_bounds() -> None:
    rows = {row[0]: row[1:] for row in settings.rows_of(Outer)}
    assert rows["`mode`"] == ("`a` or `b`", '`"a"`', "")
    assert rows["`limit`"] == ("integer > 0, or null", "", "")
    assert rows["`pair`"] == ("[number, number]", "`[0.0, 1.0]`", "")
    assert rows["`path`"] == ("path", "required", "")
    assert rows["`inner`"] == ("section", "", "Inner settings.")
    assert rows["`inner.rate`"] == ("number > 0", "`0.5`", "a | b")
    assert rows["`several.N.rate`"] == rows["`inner.rate`"]
    assert markdown.table(("a",), [("a | <b> `<c>`",)]).endswith("| a \\| \\<b> `<c>` |")


MODULE = '''
"""A module."""

LIMIT = 3
"""The limit."""
_HIDDEN = 4

@cache
def f(
    x: int,  # note
) -> int:
    """Doubles."""
    return 2 * x

def _g(): ...

class C(D):
    """A class."""

    size: int = 1

    def __init__(self) -> None:
        self.size = 2

    def _private(self): ...
'''

BLOCKS = [
    'LIMIT = 3\n"""The limit."""',
    '@cache\ndef f(\n    x: int,  # note\n) -> int:\n    """Doubles."""',
    'class C(D):\n    """A class."""\n\n    size: int = 1\n\n    def __init__(self) -> None:',
]


def test_python_names_keep_signature_and_docstring(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(MODULE)
    found = list(python.module_sections(tmp_path / "a.py", tmp_path))
    assert found == ["## a", "A module.", *(f"```python\n{block}\n```" for block in BLOCKS)]
