"""Buckets: valid sizes, the nearest aspect ratio, no enlarging unless asked for, and placing as a pure function."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.config import validate
from ldm.data.buckets import BucketSettings, Placement, bucket_sizes, draw_crop, place, scaled_size
from ldm.errors import UserError

FAST = settings(max_examples=60, deadline=None, derandomize=True)
SIDES = st.integers(1, 3000)
BUCKETS = st.builds(
    BucketSettings,
    buckets=st.just(True),
    max_aspect=st.sampled_from([1.0, 1.5, 2.0, 3.7]),
    upscale=st.booleans(),
    crop_variants=st.integers(1, 3),
)


def put(
    width: int, height: int, size: int = 512, *, seed: int = 0, sample_id: str = "a.png", **kind: Any
) -> Placement | str:
    """Place an image at a square size, or with its budget, in multiples of 64."""
    bucket_settings = BucketSettings(**kind)
    return place(
        width,
        height,
        height=size,
        width=size,
        multiple=64,
        settings=bucket_settings,
        seed=seed,
        sample_id=sample_id,
    )


def placed(*image: int, **kind: Any) -> Placement:
    placement = put(*image, **kind)
    assert isinstance(placement, Placement)
    return placement


def distance(size: tuple[int, int], width: int, height: int) -> float:
    """Distance between the log aspect ratios of a size (height, width) and an image."""
    return abs(math.log(size[1] / size[0]) - math.log(width / height))


def test_the_buckets_of_512_are_these() -> None:
    assert bucket_sizes(512 * 512, 64, 2.0) == (
        (640, 384), (576, 448), (512, 512), (448, 576), (384, 640),
    )  # fmt: skip
    assert bucket_sizes(576 * 512, 64, 1.0) == ((512, 512),)


@FAST
@given(st.integers(64, 700), st.integers(64, 700), st.sampled_from([8, 24, 64]), st.floats(1, 4))
def test_buckets_are_multiples_within_budget_and_shape_and_cannot_grow(
    height: int, width: int, multiple: int, max_aspect: float
) -> None:
    sizes = bucket_sizes(height * width, multiple, max_aspect)

    def lawful(h: int, w: int) -> bool:
        return h * w <= height * width and max(h, w) <= max_aspect * min(h, w)

    assert len(set(sizes)) == len(sizes) > 0
    assert set(sizes) == {(w, h) for h, w in sizes}
    for h, w in sizes:
        assert h % multiple == w % multiple == 0
        assert lawful(h, w)
        assert not lawful(h + multiple, w) and not lawful(h, w + multiple)


@FAST
@given(SIDES, SIDES, BUCKETS)
def test_a_placed_image_covers_its_bucket_and_keeps_its_shape(
    width: int, height: int, kind: BucketSettings
) -> None:
    placement = put(width, height, **kind.model_dump())
    if isinstance(placement, str):
        assert not kind.upscale
        return
    assert placement.height % 64 == placement.width % 64 == 0
    assert placement.height * placement.width <= 512 * 512
    sides = sorted((placement.height, placement.width))
    assert sides[1] <= kind.max_aspect * sides[0]
    down, right = placement.slack
    assert min(down, right) == 0
    assert abs(placement.scaled_width * height - placement.scaled_height * width) <= max(width, height) / 2
    assert len(placement.crops) == kind.crop_variants
    assert placement.crops[0] == (down // 2, right // 2)
    assert all(0 <= top <= down and 0 <= left <= right for top, left in placement.crops)
    if not kind.upscale:
        assert placement.scaled_height <= height and placement.scaled_width <= width


@FAST
@given(SIDES, SIDES, st.sampled_from([1.0, 2.0, 3.0]))
def test_the_bucket_of_the_nearest_shape_is_chosen(width: int, height: int, max_aspect: float) -> None:
    placement = placed(width, height, buckets=True, max_aspect=max_aspect, upscale=True)

    best = min(distance(size, width, height) for size in bucket_sizes(512 * 512, 64, max_aspect))
    assert distance((placement.height, placement.width), width, height) == pytest.approx(best, abs=1e-12)


@FAST
@given(SIDES, SIDES)
def test_a_small_image_gets_the_best_size_it_covers_or_a_reason(width: int, height: int) -> None:
    full = placed(width, height, buckets=True, upscale=True)
    placement = put(width, height, buckets=True)
    if height >= full.height and width >= full.width:
        assert placement == full
        return
    covered = [
        (h, w)
        for h in range(64, height + 1, 64)
        for w in range(64, width + 1, 64)
        if h * w <= 512 * 512 and max(h, w) <= 2 * min(h, w)
    ]
    largest = [
        size
        for size in covered
        if not any(o != size and o[0] >= size[0] and o[1] >= size[1] for o in covered)
    ]
    enough = [size for size in largest if 4 * size[0] * size[1] >= 512 * 512]
    if isinstance(placement, str):
        assert not enough
        assert f"{width} x {height} pixels" in placement and "512 x 512" in placement
        assert "data.upscale=true" in placement and "\n" not in placement
    else:
        chosen = (placement.height, placement.width)
        assert chosen in enough
        assert distance(chosen, width, height) <= min(distance(s, width, height) for s in enough) + 1e-9


@pytest.mark.parametrize(
    ("image", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((1920, 1080), (384, 640)),
        ((1080, 1920), (640, 384)),
        ((500, 600), (576, 448)),  # smaller than the square, which has the nearest aspect ratio
        ((300, 1000), (512, 256)),
        ((320, 320), (320, 320)),
    ],
)
def test_buckets_by_example(image: tuple[int, int], bucket: tuple[int, int]) -> None:
    placement = placed(*image, buckets=True)
    assert (placement.height, placement.width) == bucket


def test_the_budget_is_the_product_of_both_sides() -> None:
    kind = BucketSettings(buckets=True)
    for height, width in ((256, 1024), (1024, 256)):
        made = place(999, 999, height=height, width=width, multiple=64, settings=kind, seed=0, sample_id="a")
        assert made == Placement(512, 512, 512, 512, ((0, 0),))


def test_the_smallest_image_used_has_a_quarter_of_the_budget() -> None:
    assert placed(256, 256, buckets=True).height == 256
    for image in ((255, 255), (290, 250), (330, 200), (2000, 60), (1, 1)):
        assert isinstance(put(*image, buckets=True), str)
        assert placed(*image, buckets=True, upscale=True).height


def test_without_buckets_smaller_images_are_refused_with_both_sizes() -> None:
    for image in ((511, 900), (900, 511)):
        reason = put(*image)
        assert isinstance(reason, str)
        assert reason.startswith(f"{image[0]} x {image[1]} pixels, smaller than 512 x 512")
        assert "data.upscale=true" in reason
    assert placed(511, 900, upscale=True) == Placement(512, 512, 902, 512, ((195, 0),))
    assert placed(1024, 512) == Placement(512, 512, 512, 1024, ((0, 256),))
    assert placed(512, 512).slack == (0, 0)


def test_without_buckets_the_size_is_used_as_it_is() -> None:
    placement = place(
        40, 30, height=20, width=28, multiple=64, settings=BucketSettings(), seed=0, sample_id="a"
    )
    assert placement == Placement(20, 28, 21, 28, ((0, 0),))


def test_the_scaled_size_is_rounded_to_the_nearest_pixel() -> None:
    assert scaled_size((100, 333), (10, 20)) == (10, 33)
    assert scaled_size((333, 100), (20, 10)) == (33, 10)
    assert scaled_size((4, 6), (3, 3)) == (3, 5)  # 4.5


def test_crops_depend_only_on_seed_sample_and_index() -> None:
    kind = {"buckets": True, "crop_variants": 4}
    crops = placed(2000, 520, **kind).crops
    assert crops == placed(2000, 520, **kind).crops
    assert crops[:2] == placed(2000, 520, buckets=True, crop_variants=2).crops
    assert len(set(crops)) == 4
    assert crops[1:] != placed(2000, 520, seed=1, **kind).crops[1:]
    assert crops[1:] != placed(2000, 520, sample_id="b.png", **kind).crops[1:]
    assert placed(520, 520, **kind).crops == ((0, 0),) * 4


def test_drawn_crops_reach_both_ends() -> None:
    places = [placed(516, 512, crop_variants=2, sample_id=str(i)).crops[1] for i in range(60)]
    assert {left for _, left in places} == {0, 1, 2, 3, 4}
    assert {top for top, _ in places} == {0}


def test_each_epoch_draws_one_of_the_crops() -> None:
    placement = placed(2000, 512, crop_variants=3)
    drawn = [draw_crop(placement, seed=0, epoch=epoch, sample_id="a") for epoch in range(40)]
    assert set(drawn) == {0, 1, 2}
    assert drawn[7] == draw_crop(placement, seed=0, epoch=7, sample_id="a")
    assert drawn != [draw_crop(placement, seed=0, epoch=epoch, sample_id="b") for epoch in range(40)]
    assert draw_crop(placed(2000, 512), seed=0, epoch=3, sample_id="a") == 0


def test_a_budget_too_small_for_one_bucket_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget of 3600 pixels .* multiples of 64: make .* at least 64"):
        put(100, 100, 60, buckets=True)


def test_max_aspect_without_buckets_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_aspect = 3.0 has no effect .* set buckets=true"):
        validate(BucketSettings, {"max_aspect": 3})
    both = BucketSettings(buckets=True, max_aspect=3)
    assert validate(BucketSettings, both.model_dump()) == both
    assert validate(BucketSettings, BucketSettings().model_dump()) == BucketSettings()
