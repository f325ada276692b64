"""The emoji dataset, made from two tiny packages in the layout of the real ones."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm.demos.emoji import draw_on_white, prepare_emoji, slug_of
from ldm.demos.emoji_source import (
    IMAGES_PACKAGE,
    NAMES_PACKAGE,
    join_key,
)
from tests.support.tiny_emoji import (
    STEMS,
    read_rows,
    webp,
)


def test_the_hands_come_with_or_without_skin_tones(packages: Path, tmp_path: Path) -> None:
    for skin_tones, names in (
        (False, ["waving hand"]),
        (True, ["waving hand", "waving hand: dark skin tone"]),
    ):
        dest = tmp_path / str(skin_tones)
        prepare_emoji(dest, subset="hands", skin_tones=skin_tones, size_px=8, packages=packages)
        assert [row["text"] for row in read_rows(dest)] == names


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


def test_every_row_has_its_own_image(packages: Path, tmp_path: Path) -> None:
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


def test_progress_counts_every_image(packages: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare_emoji(
        tmp_path / "emoji", size_px=8, packages=packages, on_progress=lambda *step: told.append(step)
    )
    assert told == [("drawing", 1, 3), ("drawing", 2, 3), ("drawing", 3, 3)]


# Images


def test_transparent_becomes_white_and_opaque_keeps_its_colour() -> None:
    picture = draw_on_white(webp(), 16)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((8, 8)) == (255, 0, 0)


def test_half_transparent_is_mixed_with_white() -> None:
    assert draw_on_white(webp((0, 0, 200, 128)), 16).getpixel((8, 8)) == (127, 127, 227)


def test_edges_have_no_dark_fringe() -> None:
    """The transparent pixels are black; averaged without weights they would darken the square's edge."""
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
