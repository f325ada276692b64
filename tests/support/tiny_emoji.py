"""Two tiny packages in the layout of the real ones, for the tests of the emoji dataset."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.demos.emoji_source import (
    IMAGES_PACKAGE,
    NAMES_PACKAGE,
)

ROOT = Path(__file__).parents[2]
RED, CLEAR = (255, 0, 0, 255), (0, 0, 0, 0)

GROUPS = {
    "groups": {"1": "people-body", "4": "food-drink", "5": "travel-places", "8": "symbols"},
    "subgroups": {"16": "hand-fingers-open", "42": "food-fruit", "58": "time", "94": "keycap"},
}


def record(
    label: str, hexcode: str, order: int, kind: tuple[int, int], tags: str, **extra: Any
) -> dict[str, Any]:
    group, subgroup = kind
    found = {"label": label, "hexcode": hexcode, "order": order, "group": group, "subgroup": subgroup}
    return {**found, "tags": tags.split(), **extra}


WAVE_SKIN = {"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF", "order": 3}
RECORDS = [
    {"label": "regional indicator A", "hexcode": "1F1E6"},
    record("keycap: #", "0023-FE0F-20E3", 8, (8, 94), "keycap"),
    record("keycap: *", "002A-FE0F-20E3", 9, (8, 94), "keycap"),
    record("waving hand", "1F44B", 2, (1, 16), "hello bye", skins=[WAVE_SKIN]),
    record("red apple", "1F34E", 4, (4, 42), "apple food fruit red ripe"),
    record("woman’s pear", "1F350", 5, (4, 42), "food fruit lol 143"),
    record("mango", "1F96D", 6, (4, 42), "food fruit"),
    record("lime", "1F34B-200D-1F7E9", 7, (4, 42), "food"),
    record("alarm clock", "23F0", 10, (5, 58), "time"),
]
STEMS = (
    "0023-fe0f-20e3",
    "23-fe0f-20e3",
    "2a-20e3",
    "1f44b",
    "1f44b-1f3ff",
    "1f34e",
    "1f350",
    "1f96d",
    "23f0",
    "ffff",
)


def webp(colour: tuple[int, int, int, int] = RED) -> bytes:
    """16 px: transparent black with an opaque square from 4 to 12."""
    picture = Image.new("RGBA", (16, 16), CLEAR)
    picture.paste(colour, (4, 4, 12, 12))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=True, exact=True)
    return stream.getvalue()


def write_tgz(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def about(name: str, version: str) -> bytes:
    return json.dumps({"name": name, "version": version}).encode()


def write_names(folder: Path, records: list[dict[str, Any]] = RECORDS, name: str = NAMES_PACKAGE) -> None:
    members = {"en/data.json": records, "meta/groups.json": GROUPS}
    files = {f"package/{path}": json.dumps(content).encode() for path, content in members.items()}
    write_tgz(folder / "emojibase-data-17.0.0.tgz", {"package/package.json": about(name, "17.0.0"), **files})


def write_images(folder: Path, extra: dict[str, bytes] | None = None) -> None:
    files = {f"package/assets/{stem}.webp": webp() for stem in STEMS}
    first = {"package/package.json": about(IMAGES_PACKAGE, "1.1.0")}
    write_tgz(folder / "lobehub-fluent-emoji-3d-1.1.0.tgz", {**first, **files, **(extra or {})})


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "npm"
    folder.mkdir()
    write_names(folder)
    write_images(folder)
    return folder


def read_rows(dest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dest / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


# The dataset
