"""The main colour of an image, and recolouring it."""

import numpy as np
import pytest

from ldm.demos.emoji_colours import COLOURS, from_oklch, hue_distance, main_colour, recolour, to_oklch


def painted(*parts: tuple[tuple[int, int, int], int]) -> np.ndarray:
    """[8, 8, 4]: columns of colours, each with its number of columns; what is left is transparent."""
    image = np.zeros((8, 8, 4), np.uint8)
    start = 0
    for colour, width in parts:
        image[:, start : start + width] = (*colour, 255)
        start += width
    return image


RED, GREEN, WHITE = (210, 30, 40), (40, 160, 60), (255, 255, 255)


def test_oklch_is_undone_by_its_inverse_and_knows_red_and_grey() -> None:
    rgb = np.random.default_rng(0).random((50, 3))
    assert np.allclose(from_oklch(*to_oklch(rgb)), rgb, atol=1e-6)
    lightness, chroma, hue = to_oklch(np.array([[1.0, 0, 0], [1, 1, 1]]))
    # Ottosson's values for sRGB red, and white without chroma
    assert np.allclose([lightness[0], chroma[0], hue[0]], [0.628, 0.2577, 29.23], atol=1e-2)
    assert lightness[1] == pytest.approx(1, abs=1e-4) and chroma[1] < 1e-3


def test_hues_wrap_around() -> None:
    assert hue_distance(350.0, 10.0) == 20 and hue_distance(90.0, 270.0) == 180


@pytest.mark.parametrize(
    ("parts", "clear"),
    [
        ([(RED, 6)], True),
        ([(RED, 6), (WHITE, 2)], True),
        ([(RED, 5), (GREEN, 3)], False),  # another colour
        ([(RED, 3), (WHITE, 5)], False),  # mostly white
    ],
)
def test_one_clear_colour_covers_most_and_has_no_rival(
    parts: list[tuple[tuple[int, int, int], int]], clear: bool
) -> None:
    main = main_colour(painted(*parts))
    assert main is not None and main.is_clear is clear and main.name == "red"


def test_an_image_without_colour_has_no_main_colour() -> None:
    assert main_colour(painted((WHITE, 4), ((90, 90, 90), 4))) is None


@pytest.mark.parametrize("colour", COLOURS)
def test_recolouring_gives_the_colour_and_leaves_other_parts(colour: str) -> None:
    image = painted((RED, 5), (GREEN, 1), (WHITE, 1))
    main = main_colour(image)
    assert main is not None
    changed = recolour(image, main, colour)
    found = main_colour(changed[:, :5])
    assert found.name == colour if found else colour == "black"
    assert np.array_equal(changed[:, 5:], image[:, 5:])


def test_shading_and_transparency_stay() -> None:
    image = painted((RED, 2), ((120, 10, 20), 2), ((240, 90, 100), 2))
    main = main_colour(image)
    assert main is not None
    changed = recolour(image, main, "blue")
    lightness = to_oklch(changed[0, :6, :3] / 255)[0]
    assert lightness[2] < lightness[0] < lightness[4]
    assert np.array_equal(changed[..., 3], image[..., 3])
    assert np.array_equal(changed[:, 6:], image[:, 6:])
