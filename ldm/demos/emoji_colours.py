"""The one clear colour of an emoji, measured, and the emoji in another colour.

Colours are compared in OKLCH (B. Ottosson, "A perceptual color space for image processing", 2020): lightness L in
[0, 1], chroma C from 0 (grey) to about 0.3, and hue h in degrees. An emoji has one clear colour if most of its area
has a colour of nearly the same hue. Recolouring turns that hue alone to another one, and keeps shading, highlights and
the parts in other colours: the leaf of a blue apple stays green.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.60, 0.21, 25),
    "orange": (0.74, 0.17, 58),
    "yellow": (0.87, 0.16, 95),
    "green": (0.66, 0.17, 145),
    "blue": (0.60, 0.18, 255),
    "purple": (0.52, 0.19, 303),
    "pink": (0.76, 0.14, 350),
    "brown": (0.43, 0.08, 50),
    "black": (0.28, 0.0, 0),
}
"""The mean (L, C, h) of an object in each colour."""

HUE_WINDOW_DEG = 40.0
"""Hues within this distance of the main one count as the same colour."""

MIN_AREA, MIN_PURITY = 0.7, 0.85
_MIN_CHROMA = 0.06
_FADE_DEG = 15.0

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_LMS, _FROM_LAB = np.linalg.inv(_TO_LMS), np.linalg.inv(_TO_LAB)


@dataclass(frozen=True)
class MainColour:
    """The most frequent hue of an emoji.

    Attributes:
        lightness, chroma, hue_deg: the mean of the pixels near that hue, in OKLCH.
        area: the share of the opaque pixels that are near that hue.
        purity: the share of the chroma of all pixels that is near that hue.
    """

    lightness: float
    chroma: float
    hue_deg: float
    area: float
    purity: float

    @property
    def is_clear(self) -> bool:
        """Whether the emoji has this one colour: most of its area, and hardly any other colour."""
        return self.area >= MIN_AREA and self.purity >= MIN_PURITY

    @property
    def name(self) -> str:
        """The nearest of `COLOURS`."""
        here = _lab_of(self.lightness, self.chroma, self.hue_deg)
        return min(COLOURS, key=lambda name: float(np.sum((_lab_of(*COLOURS[name]) - here) ** 2)))


def _lab_of(lightness: float, chroma: float, hue_deg: float) -> Pixels:
    angle = np.radians(hue_deg)
    return np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])


def to_oklch(rgb: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    """Lightness, chroma and hue in degrees of sRGB colours [..., 3] in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    return lab[..., 0], chroma, np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360


def from_oklch(lightness: Pixels, chroma: Pixels, hue_deg: Pixels) -> Pixels:
    """sRGB colours [..., 3] in [0, 1]; colours that a screen cannot show are clipped."""
    angle = np.radians(hue_deg)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = np.clip((lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T, 0, 1)
    rgb: Pixels = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb


def hue_distance(first: Pixels | float, second: Pixels | float) -> Pixels:
    """The angle between hues, 0 to 180 degrees."""
    distance: Pixels = np.abs((np.asarray(first) - second + 180) % 360 - 180)
    return distance


def main_colour(rgba: NDArray[np.uint8]) -> MainColour | None:
    """The most frequent hue of an image [H, W, 4], weighted by chroma; None if nothing in it has a colour."""
    lightness, chroma, hue = to_oklch(rgba[..., :3] / 255)
    opaque = rgba[..., 3] > 127
    coloured = opaque & (chroma > _MIN_CHROMA)
    if not coloured.any():
        return None
    weight = np.where(coloured, chroma, 0.0)
    middles = np.arange(0.0, 360.0, 5.0)
    peak = max(middles, key=lambda middle: float(weight[hue_distance(hue, middle) < HUE_WINDOW_DEG].sum()))
    near = coloured & (hue_distance(hue, peak) < HUE_WINDOW_DEG)
    turn = (hue[near] - peak + 180) % 360 - 180
    return MainColour(
        lightness=float(lightness[near].mean()),
        chroma=float(chroma[near].mean()),
        hue_deg=float((peak + np.average(turn, weights=chroma[near])) % 360),
        area=float(near.sum() / opaque.sum()),
        purity=float(weight[near].sum() / weight.sum()),
    )


def recolour(rgba: NDArray[np.uint8], main: MainColour, colour: str) -> NDArray[np.uint8]:
    """An image [H, W, 4] with its main colour turned to one of `COLOURS`; alpha is kept.

    The pixels near the main hue move so that their mean becomes the new colour: the hue by rotation, the chroma by a
    factor, and the lightness by a piecewise linear map that keeps black and white.
    """
    out = rgba.copy()
    visible = rgba[..., 3] > 0
    out[visible, :3] = np.rint(255 * _recoloured(rgba[visible, :3] / 255, main, colour))
    return out


def _recoloured(rgb: Pixels, main: MainColour, colour: str) -> Pixels:
    """The same for colours [N, 3] in [0, 1]."""
    to_lightness, to_chroma, to_hue = COLOURS[colour]
    lightness, chroma, hue = to_oklch(rgb)
    far = (hue_distance(hue, main.hue_deg) - HUE_WINDOW_DEG) / _FADE_DEG
    share = np.clip(1 - far, 0, 1) * np.clip((chroma - 0.02) / (_MIN_CHROMA - 0.02), 0, 1)
    dark = lightness / main.lightness * to_lightness
    bright = 1 - (1 - lightness) / (1 - main.lightness) * (1 - to_lightness)
    moved = from_oklch(
        np.where(lightness < main.lightness, dark, bright),
        chroma / main.chroma * to_chroma,
        hue - main.hue_deg + to_hue,
    )
    return rgb * (1 - share[:, None]) + moved * share[:, None]
