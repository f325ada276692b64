"""The emoji dataset, made from two tiny packages in the layout of the real ones."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.data.emoji import draw_on_white, prepare_emoji, slug_of
from ldm.data.emoji_source import (
    IMAGES_PACKAGE,
    NAMES_PACKAGE,
    find_package,
    join_key,
    npm_pack,
    read_names,
)
from ldm.errors import UserError

ROOT = Path(__file__).parents[1]
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


def test_rows_are_in_emoji_order_with_every_column(packages: Path, tmp_path: Path) -> None:
    dest = tmp_path / "new" / "emoji"
    prepare_emoji(dest, subset="all", size_px=8, packages=packages)
    rows = read_rows(dest)
    assert [row["text"] for row in rows] == [
        "waving hand", "red apple", "woman's pear", "mango", "keycap: #", "keycap: *", "alarm clock"
    ]  # fmt: skip
    assert rows[1] == {
        "file_name": "images/red-apple.png",
        "text": "red apple",
        "captions": ["red apple", "a red apple", "red apple, food, fruit", "red apple, food, fruit, ripe"],
        "flip": True,
        "group": "food-drink",
        "subgroup": "food-fruit",
        "hexcode": "1F34E",
    }
    assert [row["flip"] for row in rows] == [True, True, True, True, False, False, False]


def test_every_row_has_its_own_picture(packages: Path, tmp_path: Path) -> None:
    prepare_emoji(tmp_path / "emoji", subset="all", size_px=8, packages=packages)
    names = [row["file_name"] for row in read_rows(tmp_path / "emoji")]
    assert names[4:6] == ["images/keycap.png", "images/keycap-002a-fe0f-20e3.png"]
    assert {f"images/{path.name}" for path in (tmp_path / "emoji/images").iterdir()} == set(names)
    assert len(set(names)) == len(names)
    for name in names:
        with Image.open(tmp_path / "emoji" / name) as picture:
            assert (picture.mode, picture.size) == ("RGB", (8, 8))


def test_clear_leaves_out_hands_keycaps_and_near_duplicates(packages: Path, tmp_path: Path) -> None:
    prepare_emoji(tmp_path / "emoji", size_px=8, packages=packages)
    assert [row["text"] for row in read_rows(tmp_path / "emoji")] == [
        "red apple",
        "woman's pear",
        "alarm clock",
    ]


def test_skin_tones_are_optional(packages: Path, tmp_path: Path) -> None:
    prepare_emoji(tmp_path / "emoji", subset="all", skin_tones=True, size_px=8, packages=packages)
    rows = read_rows(tmp_path / "emoji")
    assert [row["text"] for row in rows[:2]] == ["waving hand", "waving hand: dark skin tone"]
    assert rows[1]["captions"] == ["waving hand: dark skin tone", "waving hand: dark skin tone, bye, hello"]


def test_counts_add_up_and_name_what_was_left_out(packages: Path, tmp_path: Path) -> None:
    summary = prepare_emoji(tmp_path / "emoji", size_px=8, packages=packages)
    assert summary == json.loads((tmp_path / "emoji/dataset.json").read_text(encoding="utf-8"))
    assert (summary["found"], summary["used"]) == (len(STEMS), 3)
    assert summary["left_out"] == {
        "outside the subset": 4,
        "second picture of the same emoji": 1,
        "skin-tone variant": 1,
        "no name in emojibase-data": 1,
    }
    assert summary["used"] + sum(summary["left_out"].values()) == summary["found"]
    assert summary["left_out_files"]["no name in emojibase-data"] == ["ffff"]
    assert summary["left_out_files"]["second picture of the same emoji"] == ["23-fe0f-20e3"]
    assert summary["names_without_picture"] == ["lime"]
    assert summary["packages"] == {IMAGES_PACKAGE: "1.1.0", NAMES_PACKAGE: "17.0.0"}


def test_attribution_names_the_sources(packages: Path, tmp_path: Path) -> None:
    prepare_emoji(tmp_path / "emoji", size_px=8, packages=packages)
    text = (tmp_path / "emoji/ATTRIBUTION.md").read_text(encoding="utf-8")
    for part in ("Microsoft", "MIT", f"`{IMAGES_PACKAGE}` 1.1.0", f"`{NAMES_PACKAGE}` 17.0.0", "8 px"):
        assert part in text


def test_progress_counts_every_picture(packages: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare_emoji(
        tmp_path / "emoji", size_px=8, packages=packages, on_progress=lambda *step: told.append(step)
    )
    assert told == [("drawing", 1, 3), ("drawing", 2, 3), ("drawing", 3, 3)]


# Pictures


def test_transparent_becomes_white_and_opaque_keeps_its_colour() -> None:
    picture = draw_on_white(webp(), 16)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((8, 8)) == (255, 0, 0)


def test_half_transparent_is_mixed_with_white() -> None:
    assert draw_on_white(webp((0, 0, 200, 128)), 16).getpixel((8, 8)) == (127, 127, 227)


def test_edges_have_no_dark_fringe() -> None:
    """The transparent pixels are black: mixed in unweighted they would lower the red at the square's edge."""
    picture = draw_on_white(webp(), 7)
    assert min(picture.getchannel("R").tobytes()) == 255
    assert len(set(picture.getchannel("G").tobytes())) > 2


# Names of files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "red-apple"),
        ("piñata", "pinata"),
        ("woman's hat", "womans-hat"),
        ("T-Rex", "t-rex"),
        ("★", ""),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug_of(name) == expected


@pytest.mark.parametrize("spelling", ["0023-FE0F-20E3", "23-fe0f-20e3", "0023-20e3", "23_20e3-e007f"])
def test_the_spellings_of_one_emoji_meet(spelling: str) -> None:
    assert join_key(spelling) == "23-20e3"


# Refusals


def refused(dest: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        prepare_emoji(dest, **settings)
    left = [path.name for path in dest.parent.iterdir() if path.name.startswith(f".{dest.name}")]
    assert left == [], "a half-made folder was left behind"
    return str(error.value)


def test_an_existing_dataset_is_never_overwritten(packages: Path, tmp_path: Path) -> None:
    dest = tmp_path / "emoji"
    dest.mkdir()
    (dest / "mine.txt").write_text("mine")
    assert "already exists" in refused(dest, packages=packages)
    assert [path.name for path in dest.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    prepare_emoji(tmp_path / "emoji", size_px=8, packages=packages)
    assert len(read_rows(tmp_path / "emoji")) == 3


def test_wrong_settings_are_refused(packages: Path, tmp_path: Path) -> None:
    dest = tmp_path / "emoji"
    assert "did you mean 'clear'" in refused(dest, packages=packages, subset="cleer")
    assert "--size-px 512: choose 8 to 256" in refused(dest, packages=packages, size_px=512)
    assert "add --subset all" in refused(dest, packages=packages, skin_tones=True)


def test_missing_wrong_and_double_packages_are_refused(packages: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no lobehub-fluent-emoji-3d-*.tgz" in refused(tmp_path / "emoji", packages=empty)
    assert "has no" in refused(tmp_path / "emoji", packages=tmp_path / "absent")
    write_names(packages, name="emojibase")
    assert "is the npm package 'emojibase'" in refused(tmp_path / "emoji", packages=packages)
    (packages / "emojibase-data-16.0.0.tgz").write_bytes(b"")
    assert "several versions of emojibase-data" in refused(tmp_path / "emoji", packages=packages)


def test_broken_packages_are_refused(packages: Path, tmp_path: Path) -> None:
    archive = packages / "lobehub-fluent-emoji-3d-1.1.0.tgz"
    write_images(packages, {"package/assets/1f34e.webp": b"no picture"})
    assert "1f34e.webp is broken" in refused(tmp_path / "emoji", packages=packages)
    archive.write_bytes(archive.read_bytes()[:400])
    assert "cannot be read as a .tgz" in refused(tmp_path / "emoji", packages=packages)
    archive.write_bytes(b"no archive")
    assert "cannot be read as a .tgz" in refused(tmp_path / "emoji", packages=packages)


def test_an_unwritable_dest_is_refused(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_emoji(tmp_path / "file" / "emoji", size_px=8, packages=packages)


def test_json_that_is_none_is_refused(packages: Path, tmp_path: Path) -> None:
    files = {"package/package.json": about(NAMES_PACKAGE, "17.0.0"), "package/en/data.json": b"[{"}
    write_tgz(packages / "emojibase-data-17.0.0.tgz", files)
    assert "package/en/data.json is no JSON" in refused(tmp_path / "emoji", packages=packages)


def test_names_of_another_layout_are_refused(packages: Path, tmp_path: Path) -> None:
    write_names(packages, [{"label": "red apple", "order": 1}])
    message = refused(tmp_path / "emoji", packages=packages)
    assert "lacks 'group'" in message and "emojibase-data@17.0.0" in message


def test_nothing_is_written_outside_dest(packages: Path, tmp_path: Path) -> None:
    evil = {
        name: webp()
        for name in ("../evil.webp", "package/assets/../../../1f34a.webp", "../package/assets/1f34a.webp")
    }
    write_images(packages, evil)
    summary = prepare_emoji(tmp_path / "emoji", subset="all", size_px=8, packages=packages)
    assert summary["found"] == len(STEMS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji", "npm"]
    assert not list(tmp_path.rglob("*.webp"))


def test_without_npm_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refused(tmp_path / "emoji")
    assert "npm is not installed" in message and "--packages" in message


def test_a_failing_npm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho "no such host" >&2\nexit 1\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm pack failed \(no such host\): check the network"):
        npm_pack(tmp_path)


def test_npm_is_asked_for_both_packages_by_version(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\ncp "{packages}"/*.tgz .\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert prepare_emoji(tmp_path / "emoji", size_px=8)["used"] == 3
    asked = (tmp_path / "asked").read_text()
    assert f"{IMAGES_PACKAGE}@1.1.0" in asked and f"{NAMES_PACKAGE}@17.0.0" in asked


# The script


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/prepare_emoji.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_the_script_makes_a_dataset_and_then_refuses(packages: Path, tmp_path: Path) -> None:
    arguments = (str(tmp_path / "emoji"), "--size-px", "8", "--packages", str(packages))
    made = run_script(*arguments)
    assert (made.returncode, made.stderr) == (0, "")
    assert "3 of 10 pictures" in made.stdout
    again = run_script(*arguments)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1 and "already exists" in again.stderr


def test_names_are_sorted_and_typed(packages: Path) -> None:
    names = read_names(find_package(packages, NAMES_PACKAGE))
    assert [emoji.order for emoji in names] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [emoji.name for emoji in names if emoji.tone] == ["waving hand: dark skin tone"]
