"""Edits of drawn scenes: exact pairs, and a judge that sees each mistake and blames the right attribute."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from ldm.demos.shapes import Scene, Thing, is_held_out
from ldm.demos.shapes_drawing import GAP, MARGIN, Box, draw_at
from ldm.demos.shapes_edits import KINDS, Edit, held_out_edit, training_edit, write_edits
from ldm.demos.shapes_edits_judge import agrees_with_edit
from ldm.errors import UserError

SEED = 77
RED, BLUE = Thing("circle", "red", "large"), Thing("square", "blue", "large")
LEFT_TOP, LEFT_BOTTOM, RIGHT_TOP = Box(0.05, 0.05, 0.4), Box(0.06, 0.54, 0.4), Box(0.55, 0.05, 0.4)
GREEN, STAR = replace(RED, colour="green"), replace(RED, shape="star")
PAIR = Scene((RED, BLUE), "below")
PLACES = (LEFT_BOTTOM, LEFT_TOP)

EDITS = {
    "recolour": Edit("recolour", PAIR, Scene((GREEN, BLUE), "below"), PLACES, PLACES),
    "reshape": Edit("reshape", PAIR, Scene((STAR, BLUE), "below"), PLACES, PLACES),
    "remove": Edit("remove", PAIR, Scene((BLUE,)), PLACES, PLACES[1:]),
    "move": Edit(
        "move", PAIR, Scene((RED, BLUE), "to the right of"), PLACES, (replace(RIGHT_TOP, top=0.08), LEFT_TOP)
    ),
}


def test_instructions_say_what_changes() -> None:
    assert {kind: edit.instruction for kind, edit in EDITS.items()} == {
        "recolour": "make the red circle green",
        "reshape": "turn the red circle into a star",
        "remove": "remove the red circle",
        "move": "move the red circle to the right of the blue square",
    }


@pytest.mark.parametrize("held_out", [False, True])
def test_edits_change_one_thing_and_draw_the_rest_alike(held_out: bool) -> None:
    edits = [(held_out_edit if held_out else training_edit)(SEED, index) for index in range(80)]
    assert Counter(edit.kind for edit in edits) == dict.fromkeys(KINDS, 20)
    assert len({edit.instruction for edit in edits}) > 60
    for edit in edits:
        assert held_out == (is_held_out(edit.source) or is_held_out(edit.target))
        before, after = edit.draw(32)
        changed = (np.asarray(before) != np.asarray(after)).any(axis=2)
        assert changed.any()
        boxes = {*edit.source_boxes[:1], *(edit.target_boxes[:1] if edit.kind == "move" else ())}
        for box in boxes:
            rows, columns = (
                slice(int(at * 32), int((at + box.extent) * 32) + 1) for at in (box.top, box.left)
            )
            changed[rows, columns] = False
        assert not changed.any()


def test_moved_things_fit_and_keep_their_distance() -> None:
    for index in range(KINDS.index("move"), 160, len(KINDS)):
        edit = training_edit(SEED, index)
        moved, other = edit.target_boxes
        assert edit.source_boxes[1] == other and moved.extent == edit.source_boxes[0].extent
        assert (
            min(moved.left, moved.top) > MARGIN - 1e-9 and max(moved.right, moved.bottom) < 1 - MARGIN + 1e-9
        )
        gaps = (
            moved.left - other.right,
            other.left - moved.right,
            moved.top - other.bottom,
            other.top - moved.bottom,
        )
        assert max(gaps) > GAP - 1e-9


@pytest.mark.parametrize("held_out", [False, True])
def test_the_judge_accepts_true_edits_and_refuses_images_that_were_not_edited(held_out: bool) -> None:
    for index in range(20):
        edit = (held_out_edit if held_out else training_edit)(SEED, index)
        before, after = edit.draw(32)
        assert agrees_with_edit(edit, after) == {"changed": True, "kept": True, "all": True}, edit
        unedited = agrees_with_edit(edit, before)
        assert unedited["changed"] is False, edit
        assert unedited["kept"] is (edit.kind != "remove"), edit


MISTAKES = {
    # kind of edit: name -> (things and boxes of the image made, changed, kept)
    ("recolour", "another colour"): (
        [(replace(RED, colour="pink"), LEFT_BOTTOM), (BLUE, LEFT_TOP)],
        False,
        True,
    ),
    ("recolour", "another shape too"): (
        [(replace(STAR, colour="green"), LEFT_BOTTOM), (BLUE, LEFT_TOP)],
        True,
        False,
    ),
    ("recolour", "the other one"): (
        [(RED, LEFT_BOTTOM), (replace(BLUE, colour="green"), LEFT_TOP)],
        False,
        False,
    ),
    ("recolour", "both"): ([(GREEN, LEFT_BOTTOM), (replace(BLUE, colour="green"), LEFT_TOP)], True, False),
    ("recolour", "moved too"): ([(GREEN, replace(LEFT_BOTTOM, left=0.2)), (BLUE, LEFT_TOP)], True, False),
    ("recolour", "the other moved"): (
        [(GREEN, LEFT_BOTTOM), (BLUE, replace(LEFT_TOP, left=0.2))],
        True,
        False,
    ),
    ("recolour", "the other lost"): ([(GREEN, LEFT_BOTTOM)], True, False),
    ("recolour", "lost"): ([(BLUE, LEFT_TOP)], False, False),
    ("recolour", "one too many"): ([(GREEN, LEFT_BOTTOM), (BLUE, LEFT_TOP), (RED, RIGHT_TOP)], True, False),
    ("recolour", "smaller"): (
        [(replace(GREEN, size="small"), Box(0.14, 0.62, 0.24)), (BLUE, LEFT_TOP)],
        True,
        False,
    ),
    ("reshape", "another colour too"): (
        [(replace(STAR, colour="green"), LEFT_BOTTOM), (BLUE, LEFT_TOP)],
        True,
        False,
    ),
    ("reshape", "another shape"): (
        [(replace(RED, shape="cross"), LEFT_BOTTOM), (BLUE, LEFT_TOP)],
        False,
        True,
    ),
    ("remove", "the other one"): ([(RED, LEFT_BOTTOM)], False, False),
    ("remove", "both"): ([], True, False),
    ("remove", "moved away"): ([(RED, RIGHT_TOP), (BLUE, LEFT_TOP)], True, False),
    ("remove", "the other changed"): ([(replace(BLUE, shape="star"), LEFT_TOP)], True, False),
    ("move", "elsewhere in the relation"): (
        [(RED, replace(RIGHT_TOP, top=0.3)), (BLUE, LEFT_TOP)],
        True,
        True,
    ),
    ("move", "the other one moved"): (
        [(RED, LEFT_BOTTOM), (BLUE, replace(LEFT_BOTTOM, left=0.54))],
        False,
        False,
    ),
    ("move", "recoloured too"): ([(GREEN, RIGHT_TOP), (BLUE, LEFT_TOP)], True, False),
    ("move", "a copy"): ([(RED, RIGHT_TOP), (RED, LEFT_BOTTOM), (BLUE, LEFT_TOP)], True, False),
    ("move", "swapped"): ([(RED, LEFT_TOP), (BLUE, LEFT_BOTTOM)], False, False),
}


@pytest.mark.parametrize(("kind", "mistake"), MISTAKES)
def test_each_mistake_is_blamed_on_its_attribute(kind: str, mistake: str) -> None:
    things, changed, kept = MISTAKES[kind, mistake]
    verdict = agrees_with_edit(EDITS[kind], drawn(things))
    assert verdict == {"changed": changed, "kept": kept, "all": changed and kept}


def drawn(things: list[tuple[Thing, Box]]) -> Image.Image:
    """An image of any things at any places; a scene holds fewer."""
    image = Image.new("RGB", (32, 32), "white")
    for thing, box in things:
        one = draw_at(Scene((thing,)), (box,), 32)
        image = ImageChops.darker(image, one)
    return image


def test_a_background_that_changes_is_not_kept() -> None:
    edit = EDITS["recolour"]
    image = draw_at(replace(edit.target, background="grey"), edit.target_boxes, 32)
    assert agrees_with_edit(edit, image) == {"changed": True, "kept": False, "all": False}


def test_edits_are_written_as_the_task_reads_them(tmp_path: Path) -> None:
    write_edits(tmp_path / "edits", num_edits=4, size_px=32, seed=SEED)
    rows = [json.loads(line) for line in (tmp_path / "edits/metadata.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in rows] == [
        training_edit(SEED, index).instruction for index in range(4)
    ]
    before, after = training_edit(SEED, 3).draw(32)
    assert Image.open(tmp_path / "edits" / rows[3]["source_file_name"]).tobytes() == before.tobytes()
    assert Image.open(tmp_path / "edits" / rows[3]["file_name"]).tobytes() == after.tobytes()
    assert (
        set(rows[0]) == {"file_name", "source_file_name", "instruction", "flip"} and rows[0]["flip"] is False
    )


@pytest.mark.parametrize(
    ("given", "message"), [({"num_edits": 0}, "num_edits is 0"), ({"size_px": 8}, "size_px is 8")]
)
def test_numbers_that_are_too_small_are_refused(given: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_edits(tmp_path / "edits", **{"num_edits": 4, **given})
    assert not list(tmp_path.iterdir())
