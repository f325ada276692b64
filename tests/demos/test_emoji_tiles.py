"""Parts of emoji to learn enlarging from: what they show, what is held out, and the measurement."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.data.sources.image_folder import read_folder
from ldm.demos.emoji_tiles import (
    SIDES_PX,
    Emoji,
    enlarging_cases,
    read_emoji,
    tile,
    write_emoji_tiles,
)
from ldm.demos.shapes_quality_score import measure_cases
from ldm.errors import UserError
from ldm.export.card.training_facts import measurements_of
from ldm.io.images import open_image, resize_and_crop
from ldm.pipeline.pipeline import load_pipeline

NAMES = [f"thing-{number}" for number in range(60)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of emoji: discs in different colours."""
    folder = tmp_path_factory.mktemp("emoji")
    (folder / "images").mkdir()
    rows = []
    for number, name in enumerate(NAMES):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((5, 8, 58, 55), fill=(4 * number, 200 - 3 * number, 90))
        image.save(folder / "images" / f"{name}.png")
        rows.append({"file_name": f"images/{name}.png", "text": name, "flip": number % 2 == 0})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def emoji(data: Path) -> list[Emoji]:
    return read_emoji(data)


def test_a_part_is_cut_out_of_the_scaled_image(emoji: list[Emoji]) -> None:
    image = open_image(emoji[0].path)
    scaled = [np.asarray(resize_and_crop(image, side, side)) for side in SIDES_PX]
    found = [tile(image, 64, "a", number) for number in range(30)]
    parts = [np.asarray(part) for part in found if part is not None]
    assert len({part.tobytes() for part in parts}) > 15
    for part in parts:
        assert part.shape == (64, 64, 3) and (part.min(axis=2) < 240).mean() > 0.1
        assert any(
            (whole[top : top + 64, left : left + 64] == part).all()
            for whole in scaled
            for top, left in _places(whole, part)
        )
    assert tile(Image.new("RGB", (256, 256), "white"), 64, "a") is None


def _places(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Where a part may have been cut out: its corners and its middle have the same colours."""
    side = len(whole) - 63
    same = [
        (whole[top : top + side, left : left + side] == part[top, left]).all(axis=2)
        for top, left in ((0, 0), (0, 63), (63, 0), (63, 63), (32, 32))
    ]
    return np.argwhere(np.logical_and.reduce(same))


def test_the_parts_are_a_dataset_without_what_is_held_out(
    data: Path, emoji: list[Emoji], tmp_path: Path
) -> None:
    held_out = {one.path.stem for one in emoji if one.is_held_out}
    assert 0 < len(held_out) < 10
    written = write_emoji_tiles(tmp_path / "tiles", emoji, tiles_each=2)
    samples = read_folder(tmp_path / "tiles")
    assert len(samples) == written == 2 * (len(NAMES) - len(held_out))
    assert {sample.text for sample in samples} == set(NAMES) - held_out
    assert {sample.text: sample.may_flip for sample in samples}["thing-1"] is False
    with pytest.raises(UserError, match="tiles_each is 0, size_px 64: cut at least 1, of 8 to 96 pixels"):
        write_emoji_tiles(tmp_path / "none", emoji, tiles_each=0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="make the data again"):
        read_emoji(tmp_path / "broken")
    assert not (tmp_path / "none").exists()


def test_the_measurement_enlarges_whole_emoji(emoji: list[Emoji], tmp_path: Path) -> None:
    cases = {part: enlarging_cases(emoji, part, 2, 4) for part in ("held_out", "seen")}
    for part, some in cases.items():
        for case in some:
            one = next(one for one in emoji if one.text == case.prompt)
            assert one.is_held_out == (part == "held_out")
            assert case.given.size == (16, 16) and case.wanted.size == (64, 64)
    pipeline = load_pipeline("emoji", device="cpu")
    command = "python scripts/score_emoji_tiles.py"
    report = measure_cases(pipeline, "upscale", cases, tmp_path / "score", command=command, limits_only=True)
    assert list(report["quality"]) == ["ceiling", "bicubic", "round_trip"] and report["size_px"] == 64
    assert report["quality"]["bicubic"]["all"]["psnr"]["mean"] > 18
    gains = {"gains": {"bicubic": report["quality"]["bicubic"]}}
    (told, _) = measurements_of([{**report, **gains}], None)
    assert told.command == command
