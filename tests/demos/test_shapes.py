"""Drawn scenes: parsing captions, held-out combinations, correct drawings, and the data set."""

import json
import runpy
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.demos.shapes import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    held_out_scene,
    is_held_out,
    parse_caption,
    scene_for,
    training_scene,
)
from ldm.demos.shapes_drawing import GAP, MARGIN, Box, draw, place, write_shapes
from ldm.errors import UserError

SCENES = [scene_for(1, i) for i in range(400)]
RED = Thing("circle", "red", "small")
BLUE = Thing("square", "blue", "large")


# Captions


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene((RED,)), "a small red circle"),
        (Scene((RED, BLUE), "above"), "a small red circle above a large blue square"),
        (
            Scene((BLUE, RED), "to the left of", "black"),
            "a large blue square to the left of a small red circle on a black background",
        ),
        (Scene((Thing("triangle", "green", "small"),) * 3), "three small green triangles"),
        (
            Scene((Thing("cross", "pink", "large"),) * 2, None, "grey"),
            "two large pink crosses on a grey background",
        ),
    ],
)
def test_captions_are_exact_and_read_back(scene: Scene, caption: str) -> None:
    assert scene.caption == caption
    assert parse_caption(caption) == scene


def test_every_caption_reads_back() -> None:
    assert [parse_caption(scene.caption) for scene in SCENES] == SCENES


def test_a_white_background_may_be_named() -> None:
    assert parse_caption(" a small red circle on a white background\n") == Scene((RED,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red apple",
        "a red circle",
        "small red circle",
        "two small red circle",
        "five small red circles",
        "a small red circle near a large blue square",
        "a small red circle above a large blue square above a large blue star",
        "two small red circles above a large blue square",
        "a small red circle on a black",
        "a  small red circle",
        "A small red circle",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a caption of a drawn scene: write it like"):
        parse_caption(text)


def test_for_a_wrong_name_the_nearest_is_suggested() -> None:
    with pytest.raises(UserError, match="unknown colour 'bleu': did you mean 'blue'"):
        parse_caption("a small bleu circle")
    with pytest.raises(UserError, match="unknown shape 'circel'"):
        parse_caption("a small red circel")
    with pytest.raises(UserError, match="unknown shape 'circles': did you mean 'circle'"):
        parse_caption("a small red circles")
    with pytest.raises(UserError, match="unknown background 'black background'"):
        parse_caption("a small red circle on a black background background")
    with pytest.raises(UserError, match="unknown background 'gray': did you mean 'grey'"):
        parse_caption("a small red circle on a gray background")
    with pytest.raises(UserError, match="unknown relation 'over'"):
        Scene((RED, BLUE), "over")


@pytest.mark.parametrize(
    ("things", "relation"),
    [((), None), ((RED, BLUE), None), ((RED,), "above"), ((RED,) * 3, "above"), ((RED,) * 5, None)],
)
def test_a_scene_is_of_one_of_three_kinds(things: tuple[Thing, ...], relation: str | None) -> None:
    with pytest.raises(ValueError, match="a scene is one thing"):
        Scene(things, relation)


# Sampling


def test_scenes_are_a_pure_function_and_differ() -> None:
    assert SCENES[:9] == [scene_for(1, i) for i in range(9)]
    assert len({scene.caption for scene in SCENES}) > 250
    assert [scene_for(2, i) for i in range(9)] != SCENES[:9]


def test_sampling_reaches_every_name_in_fair_shares() -> None:
    things = [scene.things[0] for scene in SCENES]
    assert Counter(thing.shape for thing in things).keys() == set(SHAPES)
    assert Counter(thing.colour for thing in things).keys() == set(COLOURS)
    assert Counter(thing.size for thing in things).keys() == set(SIZES)
    assert Counter(scene.background for scene in SCENES).keys() == set(BACKGROUNDS)
    assert {scene.relation for scene in SCENES} == {*RELATIONS, None}
    assert {len(scene.things) for scene in SCENES if not scene.relation} == {1, *NUMBERS.values()}
    pairs = [scene for scene in SCENES if scene.relation]
    assert 0.4 < len(pairs) / len(SCENES) < 0.6
    assert all(scene.things[0].colour != scene.things[1].colour for scene in pairs)
    assert 0.4 < sum(scene.background == "white" for scene in SCENES) / len(SCENES) < 0.6


def test_about_15_percent_of_the_combinations_are_held_out() -> None:
    looks = [is_held_out(Scene((Thing(s, c, "small"),))) for s in SHAPES for c in COLOURS]
    assert sum(looks) / len(looks) == 0.15
    pairs = [(Thing(a, "red", "small"), Thing(b, "yellow", "small")) for a in SHAPES for b in SHAPES]
    held = [[is_held_out(Scene(pair, relation)) for pair in pairs] for relation in RELATIONS]
    assert [sum(row) / len(row) for row in held] == [0.16] * 4


@pytest.mark.parametrize(("relation", "inverse"), [RELATIONS[:2], RELATIONS[2:]])
def test_both_wordings_of_an_arrangement_are_held_out_together(relation: str, inverse: str) -> None:
    things = [Thing(shape, "red", "small") for shape in SHAPES]
    for first, second in permutations(things, 2):
        assert is_held_out(Scene((first, second), relation)) == is_held_out(Scene((second, first), inverse))


def test_training_never_shows_a_held_out_combination_but_every_name() -> None:
    training = [training_scene(0, i) for i in range(400)]
    assert not any(is_held_out(scene) for scene in training)
    assert all(is_held_out(held_out_scene(0, i)) for i in range(50))
    shapes_by_colour = {(thing.colour, thing.shape) for scene in training for thing in scene.things}
    assert len(shapes_by_colour) == 34  # of 40, six held out
    assert {scene.relation for scene in training} == {*RELATIONS, None}
    places = {
        (s.relation, i, thing.shape) for s in training if s.relation for i, thing in enumerate(s.things)
    }
    assert len(places) == len(RELATIONS) * 2 * len(SHAPES)  # every shape on either side of every relation
    assert training[:5] == [training_scene(0, i) for i in range(5)]


# Drawing


def boxes_of(scene: Scene, index: int) -> list[Box]:
    return place(scene, 1, index)


def test_things_keep_apart_and_off_the_edge() -> None:
    for index, scene in enumerate(SCENES):
        boxes = boxes_of(scene, index)
        assert len(boxes) == len(scene.things)
        for box in boxes:
            assert min(box.left, box.top) >= MARGIN - 1e-9
            assert max(box.right, box.bottom) <= 1 - MARGIN + 1e-9
        for a, b in permutations(boxes, 2):
            assert max(b.left - a.right, b.top - a.bottom, a.left - b.right, a.top - b.bottom) >= GAP - 1e-9


def test_relations_are_strictly_true() -> None:
    pairs = [(i, scene) for i, scene in enumerate(SCENES) if scene.relation]
    for index, scene in pairs:
        a, b = boxes_of(scene, index)
        ahead = {
            "above": b.top - a.bottom,
            "below": a.top - b.bottom,
            "to the left of": b.left - a.right,
            "to the right of": a.left - b.right,
        }
        across = 0 if scene.relation in ("above", "below") else 1
        assert max(ahead, key=ahead.__getitem__) == scene.relation
        assert abs(a.centre[across] - b.centre[across]) <= 0.12 + 1e-9
    assert {scene.relation for _, scene in pairs} == set(RELATIONS)


def test_sizes_are_clearly_different() -> None:
    extents: dict[str, list[float]] = {size: [] for size in SIZES}
    for index, scene in enumerate(SCENES):
        for thing, box in zip(scene.things, boxes_of(scene, index), strict=True):
            extents[thing.size].append(box.extent)
    assert min(extents["large"]) > 1.4 * max(extents["small"])


@pytest.mark.parametrize("size_px", [32, 64])
def test_a_drawing_has_its_colours_where_its_boxes_are(size_px: int) -> None:
    for index, scene in enumerate(SCENES[:60]):
        pixels = np.asarray(draw(scene, size_px, 1, index))
        painted = (pixels != BACKGROUNDS[scene.background]).any(2)
        inside = np.zeros_like(painted)
        for thing, box in zip(scene.things, boxes_of(scene, index), strict=True):
            x, y = (int(c * size_px) for c in box.centre)
            assert tuple(pixels[y, x]) == COLOURS[thing.colour], scene.caption
            left, top = (int(v * size_px - 0.1) for v in (box.left, box.top))
            right, bottom = (int(v * size_px + 0.1) for v in (box.right, box.bottom))
            inside[top : bottom + 1, left : right + 1] = True
        assert not (painted & ~inside).any(), scene.caption


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawing_is_antialiased_and_of_the_shapes_area(shape: str) -> None:
    scene = Scene((Thing(shape, "red", "large"),), None, "black")
    pixels = np.asarray(draw(scene, 64, 0))[..., 0] / COLOURS["red"][0]
    share = {"circle": np.pi / 4, "square": 1, "triangle": 1 / 2, "star": 0.384, "cross": 5 / 9}[shape]
    extent_px = place(scene, 0)[0].extent * 64
    assert pixels.sum() == pytest.approx(share * extent_px**2, rel=0.03)
    assert ((pixels > 0.05) & (pixels < 0.95)).sum() > 10


def test_a_drawing_is_a_pure_function_of_scene_size_and_key() -> None:
    scene = SCENES[0]
    picture = draw(scene, 32, 5, 1)
    assert picture.size == (32, 32)
    assert picture.mode == "RGB"
    assert picture.tobytes() == draw(scene, 32, 5, 1).tobytes()
    assert picture.tobytes() != draw(scene, 32, 5, 2).tobytes()
    assert place(scene, 5, 1) != place(scene, 5, 2)


def test_colours_are_clearly_distinct() -> None:
    values = [*COLOURS.values(), *BACKGROUNDS.values()]
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in permutations(values, 2)) > 90


# The folder


def test_the_folder_is_an_image_folder_dataset(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", num_images=5, size_px=32, seed=4)
    rows = [json.loads(line) for line in (tmp_path / "shapes/metadata.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == [training_scene(4, i).caption for i in range(5)]
    assert all(row["flip"] is False for row in rows)
    for index, row in enumerate(rows):
        with Image.open(tmp_path / "shapes" / row["file_name"]) as image:
            assert image.tobytes() == draw(parse_caption(row["text"]), 32, 4, index).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_the_held_out_folder_holds_held_out_scenes(tmp_path: Path) -> None:
    write_shapes(tmp_path / "a", num_images=4, size_px=32, held_out=True)
    rows = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text("utf-8").splitlines()]
    assert all(is_held_out(parse_caption(row["text"])) for row in rows)


def test_what_cannot_be_written_is_refused_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_shapes(tmp_path / "kept", num_images=1, size_px=32)
    with pytest.raises(UserError, match="num_images is 0"):
        write_shapes(tmp_path / "new", num_images=0)
    with pytest.raises(UserError, match="size_px is 31"):
        write_shapes(tmp_path / "new", num_images=1, size_px=31)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "kept",
        "kept/mine.txt",
    ]


def run_script(*arguments: str) -> int:
    script = Path(__file__).parents[2] / "scripts/prepare_shapes.py"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exited:
        patch.setattr(sys, "argv", [script.name, *arguments])
        runpy.run_path(str(script), run_name="__main__")
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_the_script_draws_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "data/shapes"
    assert run_script(str(dest), "--num-images", "3", "--size-px", "32", "--seed", "9") == 0
    assert len(list((dest / "images").iterdir())) == 3
    assert training_scene(9, 2).caption in (dest / "metadata.jsonl").read_text("utf-8")
    pairs = tmp_path / "data/edits"
    assert run_script(str(pairs), "--num-images", "2", "--size-px", "32", "--edits") == 0
    assert "source_file_name" in (pairs / "metadata.jsonl").read_text("utf-8")
    assert run_script(str(dest)) == 2
    assert capsys.readouterr().err.count("\n") == 1
