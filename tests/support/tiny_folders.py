"""Tiny folders of captioned images, for the tests of folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.sources.image_folder import read_folder
from ldm.errors import UserError


def fault_of(root: Path, build: Callable[[Path], object], message: str) -> UserError:
    """What refuses a folder that `build` makes faulty, in one line that matches `message`."""
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
