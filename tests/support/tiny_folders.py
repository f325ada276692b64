"""Tiny folders of captioned images, as files and as prepared samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.data.prepare import DataSettings, Prepared, prepare
from ldm.data.sources.image_folder import read_folder
from ldm.data.sources.reading import SourceSettings, read_sources
from ldm.data.survey import survey
from ldm.errors import UserError


def fault_of(root: Path, build: Callable[[Path], object], message: str) -> UserError:
    """The error for a folder that `build` fills wrongly; asserts that it is one line that matches `message`."""
    root.mkdir()
    build(root)
    with pytest.raises(UserError, match=message) as error:
        read_folder(root)
    assert "\n" not in str(error.value)
    return error.value


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, "PNG")


def jsonl(root: Path, *rows: dict[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(name: str, text: object = "a thing", **more: object) -> dict[str, object]:
    return {"file_name": name, "text": text, **more}


def prepare_folder(
    folder: Path, size: int = 16, *, seed: int = 0, multiple: int = 4, **settings: Any
) -> Prepared:
    """The samples of a folder, read, decoded and placed at `size` pixels as in a run, with any data settings."""
    data = DataSettings(path=str(folder), height=size, width=size, **settings)
    reading = read_sources([SourceSettings(path=str(folder))])
    return prepare(reading, survey(reading.samples, None), data, multiple=multiple, seed=seed)
