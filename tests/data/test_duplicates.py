"""Exact and near duplicates: changes that the hash tolerates, changes that it does not, and the resulting groups."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from ldm.data.duplicates import _agreeing, exact_duplicates, near_duplicates, perceptual_hash
from ldm.data.sample import ImageInfo


def hash_distance(first: int, second: int) -> int:
    """How many of the 64 bits differ: 0 for the same image, about 20 for different ones."""
    return (first ^ second).bit_count()


def scene(seed: int, size: int = 96) -> Image.Image:
    """An image of some coloured shapes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), tuple(map(int, rng.integers(0, 256, 3))))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top, width, height = (rng.random(4) * size * 0.7).tolist()
        box = (left, top, left + width + 4, top + height + 4)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(
            box, tuple(map(int, rng.integers(0, 256, 3)))
        )
    return image


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


def heart(color: str) -> Image.Image:
    """The same shape in any colour. It is symmetric, so half of its frequencies are zero."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), color)
    return image


# The hash


@pytest.mark.parametrize("seed", range(12))
def test_the_same_image_saved_differently_is_near(seed: int) -> None:
    image = scene(seed)
    first = perceptual_hash(image)
    assert hash_distance(first, perceptual_hash(saved_again(image, 60))) <= 3
    assert hash_distance(first, perceptual_hash(image.resize((61, 61), Image.Resampling.LANCZOS))) <= 3
    assert hash_distance(first, perceptual_hash(image.resize((300, 300), Image.Resampling.BICUBIC))) <= 3
    assert hash_distance(first, perceptual_hash(ImageEnhance.Brightness(image).enhance(0.96))) <= 4


def test_fine_grain_does_not_count() -> None:
    pixels = np.asarray(scene(3)).astype(np.int64)
    grains = (np.random.default_rng(seed).integers(-90, 91, pixels.shape) for seed in range(2))
    noisy = [Image.fromarray((pixels // 2 + 64 + grain // 2).astype(np.uint8)) for grain in grains]
    assert hash_distance(*map(perceptual_hash, noisy)) <= 4


def test_different_images_are_far() -> None:
    hashes = [perceptual_hash(scene(seed)) for seed in range(60)]
    distances = [hash_distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 4
    assert 15 < np.mean(distances) < 32


def test_every_bit_varies() -> None:
    flat = [Image.new("RGB", (8, 8), color) for color in ("black", "white", "red", "blue", "lime", "yellow")]
    hashes = [perceptual_hash(image) for image in [*flat, *map(scene, range(60))]]
    ones = np.bitwise_or.reduce(np.array(hashes, np.uint64))
    always = np.bitwise_and.reduce(np.array(hashes, np.uint64))
    assert int(ones & ~always).bit_count() == 64


def test_the_colour_counts() -> None:
    hashes = [perceptual_hash(heart(color)) for color in ("red", "blue", "lime", "yellow")]
    assert min(hash_distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 4
    black, white = (perceptual_hash(Image.new("RGB", (16, 16), color)) for color in ("black", "white"))
    assert hash_distance(black, white) > 4


def test_a_symmetric_image_keeps_its_hash() -> None:
    image = heart("red")
    assert hash_distance(perceptual_hash(image), perceptual_hash(saved_again(image, 50))) <= 1


def test_a_hash_is_64_bits_for_any_size_and_mode() -> None:
    for size in ((1, 1), (1, 400), (33, 31), (2000, 3)):
        assert 0 <= perceptual_hash(Image.new("RGB", size, "red")) < 2**64
    grey = scene(1).convert("L")
    assert perceptual_hash(grey) == perceptual_hash(grey.convert("RGB"))


# Groups


def test_equal_bytes_make_a_group() -> None:
    hashes = {"b": "1", "a": "1", "c": "2", "e": "3", "d": "3", "f": "4"}
    facts = {sample_id: ImageInfo(content, 1, 1, 0) for sample_id, content in hashes.items()}
    assert exact_duplicates(facts) == [["a", "b"], ["d", "e"]]
    assert exact_duplicates({}) == []


def flipped(value: int, *bits: int) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def test_near_means_at_most_max_distance_bits() -> None:
    base = 0x0123456789ABCDEF
    hashes = {"a": base, "b": flipped(base, 0, 13, 26, 63), "c": flipped(base, 1, 2, 30, 31, 62)}
    assert near_duplicates(hashes) == [["a", "b"]]
    assert near_duplicates(hashes, max_distance=3) == []
    assert near_duplicates(hashes, max_distance=5) == [["a", "b", "c"]]
    assert near_duplicates({"x": base, "y": base, "z": base ^ (2**64 - 1)}, max_distance=0) == [["x", "y"]]
    assert near_duplicates({}) == near_duplicates({"x": 1}) == []


def test_links_make_one_group() -> None:
    chain = {name: flipped(0, *range(4 * index)) for index, name in enumerate("edcba")}
    assert near_duplicates(chain) == [["a", "b", "c", "d", "e"]]


def test_the_groups_equal_those_of_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    bases = rng.integers(0, 2**64, 150, dtype=np.uint64)
    values = [
        flipped(int(base), *map(int, rng.choice(64, rng.integers(0, 9), replace=False)))
        for base in bases
        for _ in range(3)
    ]
    hashes = {f"{index:03d}": value for index, value in enumerate(values)}
    for limit in (0, 2, 4, 7):
        assert near_duplicates(hashes, limit) == groups_by_comparing_all(hashes, limit)


def test_a_crowded_band_is_compared_completely() -> None:
    band = sum(1 << bit for bit in range(0, 64, 3))  # the first of three bands, equal in all hashes
    values = np.random.default_rng(1).integers(0, 2**30, 600).tolist()
    hashes = {f"{index:03d}": value & ~band for index, value in enumerate(values)}
    found = near_duplicates(hashes, 2)
    assert len(found) > 5
    assert found == groups_by_comparing_all(hashes, 2)


def groups_by_comparing_all(hashes: dict[str, int], limit: int) -> list[list[str]]:
    """The connected components, found by walking from neighbour to neighbour."""
    left, found = sorted(hashes), []
    while left:
        group, border = [left.pop(0)], 0
        while border < len(group):
            near = [other for other in left if hash_distance(hashes[group[border]], hashes[other]) <= limit]
            group += near
            left = [other for other in left if other not in near]
            border += 1
        found.append(sorted(group))
    return [group for group in found if len(group) > 1]


def test_only_those_that_agree_in_a_band_are_compared() -> None:
    keys = np.array([7, 3, 7, 9, 3, 7, 1], dtype=np.uint64)
    assert sorted(sorted(members.tolist()) for members in _agreeing(keys)) == [[0, 2, 5], [1, 4]]


def test_one_pair_among_fifty_thousand() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 50_000, dtype=np.uint64)
    hashes = {str(index): int(value) for index, value in enumerate(values)}
    hashes["twin"] = flipped(hashes["40000"], 5, 17, 40)
    assert near_duplicates(hashes) == [["40000", "twin"]]
