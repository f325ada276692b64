"""Tiny folders of captioned images, for the tests of folders."""

import json
from pathlib import Path

from PIL import Image


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, "PNG")


def jsonl(root: Path, *rows: dict[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(name: str, text: object = "a thing", **more: object) -> dict[str, object]:
    return {"file_name": name, "text": text, **more}
