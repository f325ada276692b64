"""Outpainting: the image itself does not change by a bit, whatever is added and in however many windows."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.windows import Window
from ldm.errors import UserError
from ldm.generation.reproduce import read_original
from ldm.models.expansion import Expansion, parse_expansion
from ldm.pipeline import outpainting
from ldm.pipeline.batches import PlannedBatch
from ldm.pipeline.expanding import plan_windows
from ldm.pipeline.input_images import Placement
from ldm.pipeline.outpainting import window_batch
from ldm.pipeline.pipeline import Pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_images import box_mask, photo, pixels
from tests.support.tiny_models import make_sd1

STEPS: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "expand_overlap": 4, "progress": False}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(make_sd1(tmp_path_factory.mktemp("tokenizer")))


def test_sides_are_read_in_any_order() -> None:
    assert parse_expansion(" left=3, top=64 ") == Expansion(top=64, left=3)
    assert str(parse_expansion("left=3,top=64,right=0")) == "top=64,left=3"
    assert parse_expansion("") == Expansion()


@pytest.mark.parametrize(
    "text", ["top", "top=-1", "up=3", "top=1.5", "top=3,top=4", "top=", "=3", "top=999999", ","]
)
def test_sides_that_are_none(text: str, pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="expand"):
        pipeline.generate("", image=photo(), expand=text, **STEPS)


@pytest.mark.parametrize(
    ("size", "expand"),
    [
        ((8, 8), "left=8"),
        ((7, 9), "top=3,bottom=4,left=5,right=2"),  # an odd size, at once
        ((16, 16), "left=20,top=9"),  # in windows
        ((5, 3), "right=30"),
        ((40, 17), "bottom=13"),  # larger than the model's images before
        ((1, 1), "left=15,top=15"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"expand_fill": "noise", "strength": 0.5, "mask_feather": 2}])
def test_the_image_stays_as_it_is(
    pipeline: Pipeline, size: tuple[int, int], expand: str, more: dict[str, Any]
) -> None:
    image, sides = photo(*size), parse_expansion(expand)
    made = pipeline.generate("", image=image, expand=expand, **STEPS, **more).images[0]
    assert made.size == sides.size(*size)
    old = pixels(made)[sides.top : sides.top + size[1], sides.left : sides.left + size[0]]
    assert np.array_equal(old, pixels(image))


def test_at_once_it_is_inpainting_of_the_canvas(pipeline: Pipeline) -> None:
    image, options = photo(10, 16), {name: each for name, each in STEPS.items() if name != "expand_overlap"}
    made = pipeline.generate("a", image=image, expand={"left": 6}, expand_overlap=0, **options).images[0]
    canvas = Placement(Expansion(left=6)).on_canvas(image, "")
    masked = pipeline.generate("a", image=canvas, mask=box_mask((16, 16), (0, 0, 5, 15)), **options).images[0]
    assert np.array_equal(pixels(made), pixels(masked))


def test_fills_differ_below_full_strength(pipeline: Pipeline) -> None:
    made = {
        fill: pixels(
            pipeline.generate(
                "", image=photo(), expand="right=8", expand_fill=fill, strength=0.5, **STEPS
            ).images[0]
        )
        for fill in ("mirror", "edge", "noise")
    }
    assert all((a != b).any() for a, b in pairwise([*made.values(), made["mirror"]]))


def test_a_mask_is_repainted_as_well(pipeline: Pipeline) -> None:
    image, mask = photo(), box_mask((16, 16), (0, 0, 3, 3))
    made = pipeline.generate("", image=image, mask=mask, expand="right=8", **STEPS).images[0]
    changed = (pixels(made)[:, :16] != pixels(image)).any(axis=2)
    assert changed[:4, :4].any() and not changed[4:].any() and not changed[:, 4:].any()


def test_what_surrounds_the_image() -> None:
    image = photo(4, 3)
    old = pixels(image)
    mirrored = pixels(Placement(Expansion(top=2, left=3), "mirror").on_canvas(image, ""))
    assert np.array_equal(mirrored[2:, :3], old[:, 2::-1]) and np.array_equal(mirrored[:2, 3:], old[1::-1])
    edge = pixels(Placement(Expansion(right=2), "edge").on_canvas(image, ""))
    assert np.array_equal(edge[:, 4:], old[:, [3, 3]])
    noise = [pixels(Placement(Expansion(bottom=9), "noise").on_canvas(image, key))[3:] for key in "aba"]
    assert np.array_equal(noise[0], noise[2]) and not np.array_equal(noise[0], noise[1])


def test_the_model_draws_over_the_edge_of_the_image(pipeline: Pipeline) -> None:
    """The image itself is put back, and the new area is another one than without the overlap."""
    made = [
        pixels(
            pipeline.generate(
                "", image=photo(8, 16), expand="right=8", **{**STEPS, "expand_overlap": overlap}
            ).images[0]
        )
        for overlap in (0, 4)
    ]
    assert (made[0] != made[1])[:, 8:].any() and np.array_equal(made[0][:, :8], made[1][:, :8])


def test_each_window_continues_what_was_made_before(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[Window, PlannedBatch]] = []

    def watched(batch: PlannedBatch, canvases: Any, masks: Any, window: Window, index: int) -> PlannedBatch:
        part = window_batch(batch, canvases, masks, window, index)
        parts.append((window, part))
        return part

    monkeypatch.setattr(outpainting, "window_batch", watched)
    made = pixels(pipeline.generate("", image=photo(), expand="left=24", **STEPS).images[0])
    assert len(parts) == 3 and len({part.images[0].seed for _, part in parts}) == 3
    left = np.ones((16, 40), dtype=bool)
    left[:, 24:] = False
    for window, part in parts:
        inputs = part.images[0].inputs
        mask, image = np.asarray(inputs["mask"].decoded) > 0, np.asarray(inputs["image"].decoded)
        here = (window.rows, window.columns)
        assert np.array_equal(mask, left[here])
        assert np.array_equal(image[~mask], made[here][~mask])
        assert inputs["mask"].placement is not None and inputs["mask"].placement.overlap == 4
        left[here] = False
    assert not left.any()


def test_each_window_has_its_own_part_of_the_noise(pipeline: Pipeline) -> None:
    """Other noise at the far end changes only what is made there."""
    multiple = pipeline.autoencoder.pixels_per_latent
    noise = torch.randn(1, 4, 16 // multiple, 40 // multiple, generator=torch.Generator().manual_seed(0))
    other = noise.clone()
    other[..., : 8 // multiple] *= -1
    made = [
        pixels(pipeline.generate("", image=photo(), expand="left=24", latents=each, **STEPS).images[0])
        for each in (noise, other)
    ]
    differs = (made[0] != made[1]).any(axis=(0, 2))
    assert differs[:8].all() and not differs[8:].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_windows_cover_what_is_new_beside_what_is_there(data: st.DataObject) -> None:
    multiple = 2
    height, width = (2 * data.draw(st.integers(1, 40)) for _ in range(2))
    window = [2 * data.draw(st.integers(2, 12)) for _ in range(2)]
    new = np.ones((height, width), dtype=bool)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    new[top:bottom, left:right] = False
    remaining = new.copy()
    for each in plan_windows(new, window[0], window[1], multiple):
        part = remaining[each.rows, each.columns]
        assert part.shape == (min(window[0], height), min(window[1], width))
        assert part.any() and not part.all()  # something is new, and something is there to continue
        assert each.top % multiple == each.left % multiple == 0
        part[:] = False
    assert not remaining.any()


def test_each_alone_gives_what_all_together_give(pipeline: Pipeline) -> None:
    images = [photo(seed=1), photo(12, 16, seed=2), photo(seed=3)]
    options: dict[str, Any] = {**STEPS, "expand": "left=12", "scheduler": "euler_a"}
    together = pipeline.generate("a", image=images, **options).images
    for image, made in zip(images, together, strict=True):
        alone = pipeline.generate("a", image=image, **options).images[0]
        assert abs(pixels(alone) - pixels(made)).max() <= 1


def test_steps_are_counted_over_all_windows(pipeline: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    pipeline.generate(
        "",
        image=photo(),
        expand="left=16",
        on_step=lambda done, total, *_: seen.append((done, total)),
        **STEPS,
    )
    assert seen == [(i + 1, seen[0][1]) for i in range(seen[0][1])] and seen[0][1] >= 4


def test_the_record_names_the_image_that_was_given(pipeline: Pipeline, tmp_path: Path) -> None:
    photo().save(tmp_path / "given.png")
    made = pipeline.generate("a", image=tmp_path / "given.png", expand="left=8,top=2", **STEPS)
    (path,) = made.save(tmp_path / "made")
    record = read_record(path)
    assert record.task == "blended-inpaint" and list(record.inputs) == ["image"]
    assert (record.inputs["image"].width, record.settings.expand) == (16, "top=2,left=8")
    again = read_original(path)
    options = {name: value for name, value in again.prompt.settings.given().items() if name != "num_images"}
    remade = pipeline.generate(again.prompt.prompt, image=photo(), **options).images[0]
    assert np.array_equal(pixels(remade), pixels(made.images[0]))
    assert (
        "expand"
        not in pipeline.generate("a", image=photo(), mask=box_mask((16, 16), (0, 0, 3, 3))).settings[0]
    )


def test_without_an_image_it_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="--image FILE"):
        pipeline.generate("a", expand="left=8")
