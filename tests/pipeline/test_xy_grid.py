"""Grids over two settings: each cell is the image that its settings give alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.io.contact_sheet import contact_sheet
from ldm.models.generation_settings import GenerationSettings
from ldm.pipeline.batches import Prompt
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.xy_grid import Axis, grid_sheet, make_grid, over_grid, parse_axis
from tests.support.tiny_images import pixels
from tests.support.tiny_models import make_sd1

X, Y = Axis("guidance_scale", (2.0, 5.0)), Axis("seed", (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("guidance-scale=2, 4.5", (2.0, 4.5)),
        ("seed=1,2,", (1, 2)),
        ("scheduler=ddim,euler", ("ddim", "euler")),
        ("guidance_interval=0 0.5,5 0.3", ((0.0, 0.5), (5.0, 0.3))),
        ("karras=true,off", (True, False)),
        ("prompt_weights=none,comfy", ("none", "comfy")),
    ],
)
def test_axes_are_read(text: str, values: tuple[object, ...]) -> None:
    assert parse_axis(text).values == values


@pytest.mark.parametrize(
    "text",
    [
        "seed",
        "seed=",
        "sead=1",
        "num_images=1,2",
        "seed=1.5",
        "seed=a",
        "scheduler=eular",
        "karras=2",
        "strength=2",
        "=1",
    ],
)
def test_wrong_axes_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_axis(text)
    assert "\n" not in str(refused.value)


def test_a_prompts_own_settings_hold_beside_the_grids() -> None:
    own = GenerationSettings(guidance_scale=9.0, num_inference_steps=3)
    (asked,) = over_grid([Prompt("a", own)], Axis("guidance_scale", (2.0,)), Axis("seed", (1,)))
    assert asked.settings.given() == {"guidance_scale": 2.0, "seed": 1, "num_inference_steps": 3}


def test_every_value_with_every_other_row_by_row() -> None:
    asked = over_grid([Prompt("a"), Prompt("b")], X, Y)
    found = [(each.prompt, each.settings.seed, each.settings.guidance_scale) for each in asked]
    assert found == [(p, s, g) for p in "ab" for s in (1, 2, 3) for g in (2.0, 5.0)]


def test_the_sheet_holds_every_image_in_its_place() -> None:
    images = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(12)]
    for sheet in (
        contact_sheet(images, ["x"] * 2, ["y"] * 6),
        grid_sheet(images, ["a"], Axis("seed", (1, 2)), Axis("num_inference_steps", (1, 2, 3, 4, 5, 6))),
        grid_sheet(images, ["a", "b"], Axis("seed", (1, 2)), Y),
        grid_sheet(images, ["a"], Axis("seed", (1, 2)), None),  # six images in each cell
    ):
        red = np.asarray(sheet)[..., 0][np.asarray(sheet)[..., 1:].max(axis=2) == 0]
        assert {value: int((red == value).sum()) >= 64 for value in range(12)} == dict.fromkeys(
            range(12), True
        )


def test_the_sheet_names_the_values_beside_their_images() -> None:
    images = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in range(6)]
    x, y = Axis("guidance_scale", (2.0, 5.0)), Axis("seed", (1, 2, 3))
    columns, rows = ["guidance_scale 2", "guidance_scale 5"], ["seed 1", "seed 2", "seed 3"]
    assert grid_sheet(images, ["a"], x, y) == contact_sheet(images, columns, rows)
    assert grid_sheet(images[:4], ["a", "b"], x, None) == contact_sheet(images[:4], columns, ["a", "b"])
    several = contact_sheet([images[place] for place in (0, 3, 1, 4, 2, 5)], columns, ["", "", ""])
    assert grid_sheet(images, ["a"], x, None) == several  # three images in each cell


def test_each_cell_is_the_image_made_alone(tmp_path: Path) -> None:
    pipeline = Pipeline(make_sd1(tmp_path))
    made, sheet = make_grid(pipeline, "a red apple", X, Axis("seed", (1, 2)), num_inference_steps=2)
    cells = iter(zip(made.images, made.records, strict=True))
    for seed in (1, 2):
        for scale in X.values:
            image, record = next(cells)
            alone = pipeline.generate("a red apple", seed=seed, guidance_scale=scale, num_inference_steps=2)
            assert (record.seed, record.settings.guidance_scale) == (seed, scale)
            assert abs(pixels(image) - pixels(alone.images[0])).max() <= 1
    assert sheet.width > 2 * 16 and sheet.height > 2 * 16


def test_the_command_writes_the_sheet(tmp_path: Path) -> None:
    arguments = ["generate", "a red apple", "--grid-x", "guidance_scale=1,2", "--grid-y", "seed=3,4"]
    options = ["--num-inference-steps", "1", "--output", str(tmp_path), "--quiet"]
    done = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:4] for name in names] == ["0001", "0002", "0003", "0004", "grid"]
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 2 * 64
    wrong = CliRunner().invoke(app, ["generate", "a", "--grid-x", "sead=1", "--output", str(tmp_path / "b")])
    assert wrong.exit_code == 2 and not (tmp_path / "b").exists()
