"""The judge recognises clean, noisy and blurred drawings, finds each mistake, and calls the rest unclear."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ldm.demos.shapes import COLOURS, SHAPES, Scene, Thing, scene_for
from ldm.demos.shapes_drawing import draw, place
from ldm.demos.shapes_judge import ATTRIBUTES, Observed, ObservedThing, agrees, judge

NUM_SCENES = 100
RED = Thing("circle", "red", "small")
BLUE = Thing("square", "blue", "large")


@cache
def drawings(size_px: int) -> list[tuple[Scene, Image.Image]]:
    scenes = [scene_for(7, i) for i in range(NUM_SCENES)]
    return [(scene, draw(scene, size_px, i)) for i, scene in enumerate(scenes)]


def noisy(image: Image.Image, index: int) -> Image.Image:
    """Gaussian noise, sigma 12 of 255."""
    noise = np.random.default_rng(index).normal(0, 12, (*image.size, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).round().astype(np.uint8))


def blurred(image: Image.Image, index: int) -> Image.Image:
    """Gaussian blur with a sigma of 0.7 px at 32 px, in proportion at other sizes."""
    return image.filter(ImageFilter.GaussianBlur(0.7 * image.width / 32))


def very_blurred(image: Image.Image, index: int) -> Image.Image:
    """Gaussian blur, sigma 1 px at 32 px."""
    return image.filter(ImageFilter.GaussianBlur(image.width / 32))


def wobbly(image: Image.Image, index: int) -> Image.Image:
    """Low-frequency colour drift over the image, sigma 8 of 255, as from a decoder."""
    knots = np.random.default_rng(index).normal(0, 8, (3, 4, 4)).astype(np.float32)
    drift = [Image.fromarray(k).resize(image.size, Image.Resampling.BICUBIC) for k in knots]
    pixels = np.asarray(image) + np.stack([np.asarray(d) for d in drift], -1)
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def untouched(image: Image.Image, index: int) -> Image.Image:
    return image


def blurred_and_noisy(image: Image.Image, index: int) -> Image.Image:
    return noisy(blurred(image, index), index)


@pytest.mark.parametrize("size_px", [32, 64])
@pytest.mark.parametrize(
    ("change", "bound"),
    [
        (untouched, 0.99),
        (noisy, 0.99),
        (blurred, 0.99),
        (very_blurred, 0.97),
        (blurred_and_noisy, 0.98),
        (wobbly, 0.98),
    ],
)
def test_drawings_read_back(
    change: Callable[[Image.Image, int], Image.Image], bound: float, size_px: int
) -> None:
    right, judged = Counter[str](), Counter[str]()
    for index, (scene, image) in enumerate(drawings(size_px)):
        verdict = agrees(scene, judge(change(image, index)))
        right.update(name for name, value in verdict.items() if value)
        judged.update(list(verdict))
    assert judged.keys() == set(ATTRIBUTES)
    shares = {name: right[name] / judged[name] for name in ATTRIBUTES}
    assert min(shares.values()) >= bound, shares


def test_the_whole_reading_of_a_drawing() -> None:
    for index, (scene, image) in enumerate(drawings(64)[:40]):
        observed = judge(image)
        boxes = place(scene, index)
        assert observed.background == scene.background
        assert len(observed.things) == len(boxes)
        for thing, box in zip(scene.things, boxes, strict=True):
            nearest = min(observed.things, key=lambda seen: np.hypot(*np.subtract(middle(seen), box.centre)))
            assert (nearest.shape, nearest.colour, nearest.size) == (thing.shape, thing.colour, thing.size)
            assert nearest.box == pytest.approx((box.left, box.top, box.right, box.bottom), abs=0.035)
            assert nearest.centre == pytest.approx(
                box.centre, abs=0.1
            )  # a triangle's centre is lower than its box's
            assert nearest.shape_error < 0.02


def middle(seen: ObservedThing) -> tuple[float, float]:
    left, top, right, bottom = seen.box
    return (left + right) / 2, (top + bottom) / 2


def test_any_size_and_mode_reads_alike() -> None:
    scene = Scene((RED, BLUE), "to the left of", "brown")
    for size_px in (32, 64, 100, 256, 512):
        assert all(agrees(scene, judge(draw(scene, size_px, 1))).values())
    picture = draw(scene, 128, 2)
    assert judge(picture.convert("RGBA")) == judge(picture)


def test_an_empty_image_contains_nothing() -> None:
    observed = judge(Image.new("RGB", (32, 32), "white"))
    assert observed == Observed("white", ())
    verdict = agrees(Scene((RED, BLUE), "above"), observed)
    assert verdict == dict.fromkeys(ATTRIBUTES, False) | {"background": True}


def test_specks_are_not_things() -> None:
    image = draw(Scene((BLUE,)), 64, 3)
    pixels = np.asarray(image).copy()
    pixels[1:5, 40:44] = COLOURS["red"]
    assert len(judge(Image.fromarray(pixels)).things) == 1
    pixels[1:9, 40:48] = COLOURS["red"]
    assert len(judge(Image.fromarray(pixels)).things) == 2


def test_any_image_can_be_judged() -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8))
        for thing in judge(noise.filter(ImageFilter.GaussianBlur(index % 4 / 2))).things:
            assert np.isfinite([thing.shape_error, *thing.centre]).all()
    for size in ((1, 1), (64, 1), (3, 40)):
        assert judge(Image.new("RGB", size, "black")) == Observed("black", ())


# What the judge must not pass


def altered(scene: Scene, **changes: str) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **changes), *scene.things[1:]))


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (altered(Scene((RED, BLUE), "above"), shape="star"), {"shape"}),
        (altered(Scene((RED, BLUE), "above"), colour="pink"), {"colour"}),
        (altered(Scene((RED, BLUE), "above"), size="large"), {"size"}),
        (Scene((RED, BLUE), "below"), {"relation"}),
        (Scene((BLUE, RED), "above"), {"relation"}),
        (Scene((RED, BLUE), "to the right of"), {"relation"}),
        (Scene((RED, BLUE), "above", "grey"), {"background"}),
        (Scene((RED,)), {"shape", "colour", "size", "count", "relation"}),
        (Scene((Thing("square", "red", "small"), Thing("circle", "blue", "large")), "above"), set()),
    ],
)
def test_each_mistake_affects_its_own_attribute(shown: Scene, wrong: set[str]) -> None:
    """In the last row shapes, colours and sizes are each right as sets, but combined wrongly."""
    verdict = agrees(Scene((RED, BLUE), "above"), judge(draw(shown, 64, 1)))
    assert {name for name, right in verdict.items() if not right} == wrong


def test_the_count_is_judged_independently_of_the_looks() -> None:
    three = Scene((RED,) * 3)
    for number in (1, 2, 4):
        verdict = agrees(three, judge(draw(Scene((RED,) * number), 64, 1)))
        assert {name for name, right in verdict.items() if not right} == {"count"}
    assert "relation" not in agrees(three, judge(draw(three, 64, 1)))


def seen(thing: Thing, x: float, y: float) -> ObservedThing:
    return ObservedThing(
        thing.shape, thing.colour, thing.size, (x, y), (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 0.0
    )


def test_a_relation_is_judged_on_the_most_similar_things() -> None:
    scene = Scene((RED, BLUE), "above")
    almost_red = replace(RED, shape="star")
    right = Observed("white", (seen(BLUE, 0.5, 0.8), seen(almost_red, 0.45, 0.2), seen(BLUE, 0.5, 0.9)))
    assert agrees(scene, right)["relation"]
    aside = Observed("white", (seen(RED, 0.1, 0.4), seen(BLUE, 0.8, 0.6)))
    assert not agrees(scene, aside)["relation"]


def test_a_relation_between_things_that_cannot_be_told_apart_is_wrong() -> None:
    twins = Observed("white", (seen(RED, 0.5, 0.2), seen(RED, 0.5, 0.8)))
    for relation in ("above", "below"):
        assert not agrees(Scene((RED, BLUE), relation), twins)["relation"]
        assert agrees(Scene((RED, RED), relation), twins)["relation"]
    assert not agrees(Scene((RED, RED), "to the left of"), twins)["relation"]


def painted(paint: Callable[[ImageDraw.ImageDraw], None], colour: str = "white") -> Observed:
    image = Image.new("RGB", (512, 512), colour)
    paint(ImageDraw.Draw(image))
    return judge(image.reduce(8))


@pytest.mark.parametrize(
    "paint",
    [
        lambda d: d.ellipse((100, 100, 310, 310), outline=COLOURS["red"], width=40),
        lambda d: d.polygon([(100, 100), (160, 100), (160, 250), (310, 250), (310, 310), (100, 310)], "red"),
        lambda d: d.rectangle((100, 200, 310, 260), COLOURS["red"]),
        lambda d: (d.ellipse((100, 150, 230, 280), "red"), d.ellipse((210, 150, 340, 280), "red")),
        lambda d: d.pieslice((100, 100, 310, 310), 0, 180, COLOURS["red"]),
    ],
    ids=["ring", "corner", "bar", "two circles run together", "half a circle"],
)
def test_other_shapes_are_unclear(paint: Callable[[ImageDraw.ImageDraw], None]) -> None:
    (thing,) = painted(paint).things
    assert (thing.shape, thing.colour) == ("unclear", "red")
    assert thing.shape not in SHAPES


def test_things_close_together_are_separated() -> None:
    """They are two pixels apart, so their soft edges overlap."""

    def paint(d: ImageDraw.ImageDraw) -> None:
        d.rectangle((80, 240, 191, 351), COLOURS["blue"])
        d.rectangle((208, 160, 399, 351), COLOURS["blue"])

    names = [(thing.shape, thing.colour, thing.size) for thing in painted(paint).things]
    assert names == [("square", "blue", "large"), ("square", "blue", "small")]


def test_a_thing_of_two_colours_is_located_correctly() -> None:
    """On grey, blue is partly the opposite of red; if it counted as such, it would shift the centre."""

    def paint(d: ImageDraw.ImageDraw) -> None:
        d.rectangle((104, 104, 215, 311), COLOURS["red"])
        d.rectangle((216, 104, 311, 311), COLOURS["blue"])

    (thing,) = painted(paint, "rgb(150,150,150)").things
    assert thing.centre == pytest.approx((0.406, 0.406), abs=0.02)
    assert thing.size == "large"


def test_other_colours_are_unclear_or_a_backgrounds() -> None:
    box = (100, 100, 310, 310)
    assert painted(lambda d: d.rectangle(box, (0, 255, 128))).things[0].colour == "unclear"
    assert painted(lambda d: d.rectangle(box, "black")).things[0].colour == "black"
    assert painted(lambda d: d.rectangle(box, "black"), "red").background == "red"
    assert painted(lambda d: None, "rgb(0,255,150)").background == "unclear"
