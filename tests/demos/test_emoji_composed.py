"""The composed dataset on disk, and the score of a model on it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm import load_pipeline
from ldm.data.sources.image_folder import read_folder
from ldm.demos.emoji_composed import (
    OBJECTS_FOLDER,
    prepare_composed_emoji,
    read_held_out,
    read_training_scenes,
)
from ldm.demos.emoji_composed_score import round_trip, score_composed_emoji
from ldm.demos.emoji_objects import read_objects
from ldm.demos.emoji_scenes import KINDS, choose_held_out
from ldm.demos.emoji_scenes_drawing import Artwork
from ldm.errors import UserError
from tests.support.tiny_emoji import RECORDS, record, webp, write_images, write_names

BLUE, GREEN = (40, 60, 220, 255), (30, 160, 60, 255)
ANIMALS = [
    record("dog", "1F415", 11, (4, 42), "pet"),
    record("rocket", "1F680", 12, (4, 42), "space"),
    record("tornado", "1F32A", 13, (4, 42), "cloud"),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    write_names(folder, [*RECORDS, *ANIMALS])
    extra = {"1f415": webp(BLUE), "1f680": webp(GREEN), "1f32a": webp(BLUE)}
    write_images(folder, {f"package/assets/{stem}.webp": image for stem, image in extra.items()})
    return folder


@pytest.fixture(scope="module")
def data(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("data") / "composed"
    prepare_composed_emoji(dest, size_px=64, num_pairs=4, num_coloured_counts=3, packages=packages)
    return dest


def test_each_kind_is_an_image_folder_of_what_its_captions_say(data: Path) -> None:
    summary = json.loads((data / "dataset.json").read_text())
    artwork = Artwork.read(data / OBJECTS_FOLDER, 64)
    assert sorted(artwork.objects) == ["apple", "dog", "rocket"] and summary["num_objects_in_colours"] == 3
    for kind in KINDS:
        samples, scenes = read_folder(data / kind), read_training_scenes(data, kind)
        assert len(samples) == len(scenes) == summary["num_images"][kind] > 0
        assert all(sample.may_flip is False for sample in samples)
        rows = [json.loads(line) for line in (data / kind / "metadata.jsonl").read_text().splitlines()]
        for row, scene in zip(rows, scenes, strict=True):
            with Image.open(data / kind / row["file_name"]) as image:
                assert image.tobytes() == artwork.draw(scene).tobytes()
    assert {sample.text for sample in read_folder(data / "pair")} <= {
        f"a {first} {where} {second}"
        for first, second in (("dog", "an apple"), ("rocket", "an apple"))
        for where in ("and", "above")
    } | {f"an apple {where} a {second}" for second in ("dog", "rocket") for where in ("and", "above")}


def test_the_held_out_list_is_beside_the_data_and_the_same_in_every_run(
    data: Path, packages: Path, tmp_path: Path
) -> None:
    assert read_held_out(data) == choose_held_out(read_objects(data / OBJECTS_FOLDER))
    again = tmp_path / "again"
    prepare_composed_emoji(again, size_px=64, num_pairs=4, num_coloured_counts=3, packages=packages)
    for path in data.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(data)).read_bytes(), path.name


def test_what_is_refused_leaves_nothing(data: Path, packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size-px 30: choose a multiple of 4"):
        prepare_composed_emoji(tmp_path / "new", size_px=30, packages=packages)
    with pytest.raises(UserError, match="already exists"):
        prepare_composed_emoji(data, packages=packages)
    (packages / "other").mkdir()
    with pytest.raises(UserError, match="has no lobehub"):
        prepare_composed_emoji(tmp_path / "new", packages=packages / "other")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "held_out.json").write_text("{}")
    with pytest.raises(UserError, match="make the data again"):
        read_held_out(tmp_path)
    with pytest.raises(UserError, match="make the data again"):
        read_training_scenes(tmp_path, "pair")


def test_a_score_has_the_limits_of_the_judge_and_the_shares_of_the_model(data: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline("emoji", device="cpu")
    report = score_composed_emoji(
        pipeline,
        data,
        tmp_path / "score",
        num_held_out=2,
        num_seen=1,
        kinds=("colour", "pair"),
        settings={"num_inference_steps": 1, "guidance_scale": 1.0},
    )
    assert json.loads((tmp_path / "score/report.json").read_text()) == report
    for kind in ("colour", "pair"):
        assert (tmp_path / f"score/{kind}-held-out.png").is_file()
        assert report[kind]["held_out"]["all"]["num_judged"] == report[kind]["ceiling"]["all"]["num_judged"]
        assert report[kind]["seen"]["object"]["num_judged"] == 1
        assert set(report[kind]["null"]) == set(report[kind]["ceiling"])
    with pytest.raises(UserError, match="exists"):
        score_composed_emoji(pipeline, data, tmp_path / "score")


def test_the_round_trip_is_that_of_the_autoencoder(data: Path) -> None:
    image = Artwork.read(data / OBJECTS_FOLDER, 64).draw(read_training_scenes(data, "colour")[0])
    [back] = round_trip(load_pipeline("emoji", device="cpu"), [image])
    difference = [abs(a - b) for a, b in zip(image.tobytes(), back.tobytes(), strict=True)]
    assert 0 < sum(difference) / len(difference) < 12
