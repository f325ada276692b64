"""The plain scenes of the shapes recipe: one or two large things on white."""

import json
from pathlib import Path

import pytest

from ldm.demos.shapes import held_out_scene, is_held_out, is_plain, parse_caption, scene_for, training_scene
from ldm.demos.shapes_drawing import write_shapes


@pytest.mark.parametrize(("scene_of", "held_out"), [(training_scene, False), (held_out_scene, True)])
def test_plain_scenes_are_plain_and_on_their_side_of_the_split(scene_of: object, held_out: bool) -> None:
    scenes = [scene_of(3, index, plain=True) for index in range(200)]  # type: ignore[operator]
    assert all(is_plain(scene) and is_held_out(scene) == held_out for scene in scenes)
    assert {len(scene.things) for scene in scenes} == {1, 2}
    assert len({scene.caption for scene in scenes}) > 50


def test_most_scenes_are_not_plain() -> None:
    plain = [is_plain(scene_for(3, index)) for index in range(400)]
    assert 20 < sum(plain) < 120


@pytest.mark.parametrize(
    "caption",
    ["a small red circle", "two large red circles", "a large red circle on a black background"],
)
def test_what_is_not_plain(caption: str) -> None:
    assert not is_plain(parse_caption(caption))


def test_a_plain_folder_holds_plain_scenes(tmp_path: Path) -> None:
    write_shapes(tmp_path / "plain", num_images=12, size_px=32, plain=True)
    rows = [json.loads(line) for line in (tmp_path / "plain/metadata.jsonl").read_text().splitlines()]
    assert all(is_plain(parse_caption(row["text"])) for row in rows)
