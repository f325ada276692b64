"""Edits of emoji scenes: what the pairs show, what is held out of training, and what the judge says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm import load_pipeline
from ldm.data.sources.image_folder import read_folder
from ldm.demos.emoji_colours import main_colour
from ldm.demos.emoji_composed import HELD_OUT_FILE, OBJECTS_FOLDER
from ldm.demos.emoji_edits import EDIT_KINDS, EmojiEdit, EmojiEdits, Place, write_emoji_edits
from ldm.demos.emoji_edits_judge import EmojiEditJudge
from ldm.demos.emoji_edits_score import score_emoji_edits
from ldm.demos.emoji_objects import OBJECTS_FILE, EmojiObject
from ldm.demos.emoji_scenes import HeldOut, Thing
from ldm.demos.emoji_scenes_drawing import ONE_ABOVE_ANOTHER, SIDE_BY_SIDE, Artwork
from ldm.errors import UserError
from ldm.export.card.training_facts import measurements_of

OUTLINES = {
    "flag": [(20, 20), (230, 90), (20, 160)],
    "tower": [(90, 10), (150, 10), (240, 240), (60, 240)],
    "hill": [(10, 240), (60, 100), (240, 240)],
    "ball": [(60, 60), (196, 60), (196, 196), (60, 196)],
}
COLOUR = {"flag": (220, 40, 40), "tower": (40, 80, 220), "hill": (30, 160, 60), "ball": (230, 120, 30)}
HELD_OUT = HeldOut(
    colour=frozenset({("flag", "blue"), ("hill", "red")}),
    background=frozenset(),
    count=frozenset(),
    pair=frozenset({("ball", "tower")}),
)


def cutout(noun: str) -> Image.Image:
    image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    ImageDraw.Draw(image).polygon(OUTLINES[noun], fill=(*COLOUR[noun], 255))
    return image


@pytest.fixture(scope="module")
def edits() -> EmojiEdits:
    pixels = {noun: np.asarray(cutout(noun)) for noun in OUTLINES}
    objects = [EmojiObject(noun, f"{noun}s", noun, main_colour(pixels[noun])) for noun in OUTLINES]
    return EmojiEdits(Artwork(objects, pixels, 64), HELD_OUT)


@pytest.fixture(scope="module")
def judge(edits: EmojiEdits) -> EmojiEditJudge:
    return EmojiEditJudge(edits.artwork)


def some(edits: EmojiEdits, number: int = 100) -> list[EmojiEdit]:
    return [edits.training(0, index) for index in range(number)]


@pytest.mark.parametrize(
    ("edit", "instruction"),
    [
        (
            EmojiEdit("recolour", Place(Thing("flag", "red")), Place(Thing("flag", "green"))),
            "make the flag green",
        ),
        (EmojiEdit("replace", Place(Thing("flag")), Place(Thing("hill"))), "turn the flag into a hill"),
        (EmojiEdit("mirror", Place(Thing("flag")), Place(Thing("flag"), mirrored=True)), "mirror the flag"),
        (
            EmojiEdit("remove", Place(Thing("flag"), (0, 1)), None, Place(Thing("hill"), (2, 1))),
            "remove the flag",
        ),
        *(
            (
                EmojiEdit(
                    "add", None, Place(Thing("flag"), layout[at]), Place(Thing("hill"), layout[1 - at])
                ),
                f"add a flag {where} the hill",
            )
            for layout, at, where in [
                (SIDE_BY_SIDE, 0, "to the left of"),
                (SIDE_BY_SIDE, 1, "to the right of"),
                (ONE_ABOVE_ANOTHER, 0, "above"),
                (ONE_ABOVE_ANOTHER, 1, "below"),
            ]
        ),
    ],
)
def test_the_instruction_says_what_changes(edit: EmojiEdit, instruction: str) -> None:
    assert edit.instruction == instruction


def test_only_what_the_instruction_names_changes(edits: EmojiEdits) -> None:
    made = some(edits)
    assert {edit.kind for edit in made} == set(EDIT_KINDS)
    for edit in made:
        before, after = (np.asarray(image) for image in edit.draw(edits.artwork))
        differs = (before != after).any(axis=2)
        named = edit.before or edit.after
        assert named is not None and differs.any()
        if named.cell is not None:
            column, row = (16 * each for each in named.cell)
            differs[row : row + 32, column : column + 32] = False
            assert not differs.any(), edit.instruction
        assert (edit.other is None) == (named.cell is None)


def test_what_is_held_out_is_in_every_test_and_in_no_training(edits: EmojiEdits) -> None:
    assert not any(edits.is_held_out(edit) for edit in some(edits))
    assert all(
        edits.is_held_out(edits.testing(1, index)) for index in range(20) if EDIT_KINDS[index % 5] != "mirror"
    )
    told = {edit.instruction for edit in some(edits, 300)}
    assert {"make the flag green", "turn the ball into a hill"} <= told
    assert not told & {
        "make the flag blue",
        "make the hill red",
        "turn the ball into a tower",
        "add a ball above the tower",
    }


def test_a_dataset_that_holds_nothing_out_is_refused(edits: EmojiEdits) -> None:
    nothing = HeldOut(frozenset(), frozenset(), frozenset(), frozenset())
    with pytest.raises(
        UserError, match="hardly any held-out edit of the kind recolour: use a dataset of more"
    ):
        EmojiEdits(edits.artwork, nothing).testing(1, 0)


def test_an_edit_depends_on_its_seed_and_index_alone(edits: EmojiEdits) -> None:
    again = EmojiEdits(edits.artwork, edits.held_out)
    assert [again.training(0, index) for index in (7, 3)] == [edits.training(0, index) for index in (7, 3)]
    assert [edits.training(0, index) for index in range(20)] != [
        edits.training(1, index) for index in range(20)
    ]


def test_a_symmetric_object_is_never_mirrored(edits: EmojiEdits) -> None:
    mirrored = {edit.before.thing.noun for edit in some(edits) if edit.kind == "mirror" and edit.before}
    assert mirrored and mirrored <= {"flag", "tower", "hill"}


def test_the_judge_is_right_about_drawings(edits: EmojiEdits, judge: EmojiEditJudge) -> None:
    for edit in some(edits, 50):
        before, after = edit.draw(edits.artwork)
        assert judge.agrees(edit, after) == {"changed": True, "kept": True, "all": True}, edit
        assert judge.agrees(edit, before) == {"changed": False, "kept": True, "all": False}, edit


def test_the_judge_sees_what_should_have_stayed(edits: EmojiEdits, judge: EmojiEditJudge) -> None:
    alone = EmojiEdit("recolour", Place(Thing("flag", "red")), Place(Thing("flag", "green")))
    wrong = replace(alone, after=Place(Thing("hill", "green")))
    assert judge.agrees(alone, wrong.draw(edits.artwork)[1]) == {"changed": True, "kept": False, "all": False}
    turned = replace(alone, after=Place(Thing("flag", "red"), mirrored=True))
    mirror = replace(alone, kind="mirror", after=turned.after)
    assert judge.agrees(mirror, turned.draw(edits.artwork)[1])["all"]
    added = EmojiEdit("add", None, Place(Thing("ball"), (0, 1)), Place(Thing("hill"), (2, 1)))
    other = replace(added, other=Place(Thing("hill", "purple"), (2, 1)))
    assert judge.agrees(added, other.draw(edits.artwork)[1]) == {"changed": True, "kept": False, "all": False}
    crowded = added.draw(edits.artwork)[1]
    ImageDraw.Draw(crowded).rectangle((0, 0, 60, 12), fill="black")
    assert judge.agrees(added, crowded) == {"changed": True, "kept": False, "all": False}


def test_the_pairs_are_a_dataset_for_the_edit_task(edits: EmojiEdits, tmp_path: Path) -> None:
    dest, done = tmp_path / "edits", []
    write_emoji_edits(
        dest, edits, num_edits=5, on_progress=lambda number, total: done.append((number, total))
    )
    assert done[-1] == (5, 5)
    rows = [json.loads(line) for line in (dest / "metadata.jsonl").read_text().splitlines()]
    samples = read_folder(dest, caption_column="instruction")
    assert len(rows) == len(samples) == 5 and all(sample.may_flip is False for sample in samples)
    for index, row in enumerate(rows):
        edit = edits.training(0, index)
        assert row["instruction"] == edit.instruction == samples[index].text
        drawn = edit.draw(edits.artwork)
        for image, name in zip(drawn, ("source_file_name", "file_name"), strict=True):
            with Image.open(dest / row[name]) as written:
                assert written.tobytes() == image.tobytes()
    with pytest.raises(UserError, match="num_edits is 0: draw at least 1"):
        write_emoji_edits(tmp_path / "none", edits, num_edits=0)
    assert [path.name for path in tmp_path.iterdir()] == ["edits"]


def test_the_score_names_the_command_that_measures_it_again(edits: EmojiEdits, tmp_path: Path) -> None:
    composed = tmp_path / "composed"
    (composed / OBJECTS_FOLDER).mkdir(parents=True)
    for noun in OUTLINES:
        cutout(noun).save(composed / OBJECTS_FOLDER / f"{noun}.png")
    rows = [
        {"noun": one.noun, "plural": one.plural, "name": one.name, "main": vars(one.main)}
        for one in edits.artwork.objects.values()
    ]
    (composed / OBJECTS_FOLDER / OBJECTS_FILE).write_text(json.dumps(rows))
    (composed / HELD_OUT_FILE).write_text(json.dumps(HELD_OUT.to_dict()))
    pipeline = load_pipeline("emoji", device="cpu")
    report = score_emoji_edits(pipeline, composed, tmp_path / "score", num_cases=3, limits_only=True)
    scores = report["scores"]
    assert list(scores) == ["ceiling", "unedited"] and scores["unedited"]["all"]["changed"]["share"] == 0
    assert json.loads((tmp_path / "score" / "report.json").read_text()) == report
    part = scores["ceiling"]
    told = measurements_of([{**report, "scores": {"held_out": part, "seen": part}}], None)
    assert [one.command.split()[1] for one in told] == ["scripts/score_emoji_edits.py"] * 2
