"""How visible the border is between a part of an image that was there and one that was made."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEAST_LEVELS = 1.0
"""The least usual difference between neighbours, of 255 levels: on a plain background the median is 0."""


def seam_energy(image: Image.Image, *, column: int | None = None, row: int | None = None) -> float:
    """The mean difference of neighbouring pixels across a line, over the median of that mean across all such lines.

    About 1 for a line that is like any other; well above for a visible seam.

    Args:
        column: the line lies on the left of this column; or
        row: above this row.

    Raises:
        ValueError: not one of the two is given, or there is no such line.
    """
    if (column is None) == (row is None):
        raise ValueError("give either a column or a row")
    pixels: NDArray[np.float64] = np.asarray(image.convert("RGB"), dtype=np.float64)
    axis, place = (1, column) if row is None else (0, row)
    assert place is not None
    lines = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
    if not 1 <= place <= len(lines):
        raise ValueError(f"there is no line at {place}")
    return float(lines[place - 1] / max(float(np.median(lines)), LEAST_LEVELS))
