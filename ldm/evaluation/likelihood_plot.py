"""A plot of the terms of the variational bound over the noise levels."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.evaluation.curves import CURVES_CHUNK
from ldm.evaluation.likelihood import ImageBound
from ldm.io.files import write_bytes

NUM_BINS = 20


def binned(bounds: Sequence[ImageBound]) -> list[tuple[float, float, float]]:
    """The middle of each part of the path that has draws, the mean of its terms, and their standard error."""
    drawn = np.array([pair for bound in bounds for pair in bound.terms], dtype=np.float64).reshape(-1, 2)
    number = np.minimum(drawn[:, 0] * NUM_BINS, NUM_BINS - 1).astype(int)
    found = []
    for index in range(NUM_BINS):
        terms = drawn[number == index, 1]
        if len(terms):
            error = terms.std(ddof=1) / len(terms) ** 0.5 if len(terms) > 1 else 0.0
            found.append(((index + 0.5) / NUM_BINS, float(terms.mean()), float(error)))
    return found


def draw_terms(bounds: Sequence[ImageBound], output: Path) -> None:
    """Draw the mean term of a noise level, in bits per dimension, over the path, into a PNG.

    Raises:
        UserError: the disk is full or not writable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    at, mean, error = np.array(binned(bounds)).T
    axes.errorbar(at, mean, yerr=error, marker="o", markersize=3, linewidth=1.6, capsize=2)
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("terms of the variational bound", loc="left", fontsize=11, fontweight="bold")
    axes.set_title("± standard error", loc="right", fontsize=8, color="0.35")
    axes.set_xlabel("noise level, from the least (0) to the most (1)")
    axes.set_ylabel("bits per dimension")
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None, CURVES_CHUNK: "ldm likelihood"})
    write_bytes(output, png.getvalue())
