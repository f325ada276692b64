"""All pages of docs/reference/, and writing them."""

from pathlib import Path

import ldm

from .commands import commands_page
from .formats import formats_page
from .markdown import page
from .python import python_pages
from .settings import generation_page, training_page

ROOT = Path(__file__).parents[2]

SURFACE = """\
## Python

These names can be imported from `ldm` itself and are stable, which means that they change only with a major version:
{names}.

The modules below are public too, for code that builds on the parts. Their names may change with a minor version, and
the changelog says so. Everything else (the command line, file handling, demos, the programs) is internal.
"""


def reference_pages() -> dict[str, str]:
    """Every page by its path below docs/reference/."""
    python = {f"python/{name}": text for name, text in python_pages(ROOT).items()}
    return {
        "README.md": index(list(python)),
        "commands.md": commands_page(),
        "generation-settings.md": generation_page(),
        "training-settings.md": training_page(),
        "formats.md": formats_page(),
        **python,
    }


def index(python: list[str]) -> str:
    """The first page, which leads to the others."""
    links = (
        "- [Commands](commands.md): every command with its options\n"
        "- [Generation settings](generation-settings.md): the settings of an image\n"
        "- [Training settings](training-settings.md): the keys of a training configuration\n"
        "- [Formats, samplers and presets](formats.md)"
    )
    modules = "\n".join(f"- [{Path(name).stem}]({name})" for name in python)
    names = ", ".join(f"`{name}`" for name in ldm.__all__)
    return page("Reference", links, SURFACE.format(names=names), modules)


def write_reference(folder: Path) -> list[Path]:
    """Write every page, and remove pages that are no longer generated; returns the paths written."""
    pages = reference_pages()
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]
