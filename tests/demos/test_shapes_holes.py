"""Holes in drawn scenes: what the hole covers says nothing of the caption, and the judge sees each mistake."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.demos.shapes import is_held_out, is_plain
from ldm.demos.shapes_drawing import draw_at
from ldm.demos.shapes_holes import agrees_with_hole, hole_for

SEED = 78


@pytest.mark.parametrize("held_out", [False, True])
def test_a_hole_covers_one_thing_that_is_not_the_captions(held_out: bool) -> None:
    for index in range(20):
        hole = hole_for(SEED, index, held_out=held_out)
        assert is_plain(hole.scene) and is_held_out(hole.scene) == held_out
        shown, wanted = hole.covered.things[hole.number], hole.scene.things[hole.number]
        assert shown.shape != wanted.shape and shown.colour != wanted.colour
        given, mask, true = hole.draw(32)
        differs = (np.asarray(given) != np.asarray(true)).any(axis=2)
        assert differs.any() and not (differs & (np.asarray(mask) == 0)).any()
        ink = (np.asarray(true) != 255).any(axis=2)
        if len(hole.scene.things) == 2:  # the other thing stays visible
            assert (ink & (np.asarray(mask) == 0)).any()
        assert agrees_with_hole(hole, given, mask, true) == {"restored": True, "untouched": True, "all": True}
        assert agrees_with_hole(hole, given, mask, given) == {
            "restored": False,
            "untouched": True,
            "all": False,
        }


@pytest.mark.parametrize("name", ["shape", "colour"])
def test_a_thing_that_came_back_different_is_not_restored(name: str) -> None:
    hole = hole_for(SEED, 0, held_out=False)
    given, mask, _ = hole.draw(32)
    things = list(hole.scene.things)
    value = getattr(hole.covered.things[hole.number], name)
    things[hole.number] = replace(things[hole.number], **{name: value})
    made = draw_at(replace(hole.scene, things=tuple(things)), hole.boxes, 32)
    assert agrees_with_hole(hole, given, mask, made)["restored"] is False


def test_an_empty_hole_is_not_restored_and_one_level_outside_is_seen() -> None:
    hole = hole_for(SEED, 1, held_out=False)
    given, mask, true = hole.draw(32)
    empty = Image.composite(Image.new("RGB", true.size, "white"), true, mask)
    assert agrees_with_hole(hole, given, mask, empty)["restored"] is False
    x, y = next((x, y) for y in range(32) for x in range(32) if mask.getpixel((x, y)) == 0)
    touched = true.copy()
    red, green, blue = np.asarray(true)[y, x].tolist()
    touched.putpixel((x, y), (red, green, blue - 1))
    assert agrees_with_hole(hole, given, mask, touched) == {
        "restored": True,
        "untouched": False,
        "all": False,
    }
