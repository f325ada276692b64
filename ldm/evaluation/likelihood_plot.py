"""A plot of what the noise levels add to the variational bound."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.evaluation.curves import CURVES_CHUNK, Numbers
from ldm.evaluation.likelihood import ImageBound
from ldm.io.files import write_bytes

NUM_BINS = 20


def binned(bounds: Sequence[ImageBound]) -> tuple[Numbers, Numbers]:
    """What each part of the path adds to the bound, [NUM_BINS]: the mean over the images, and its standard error."""
    sums = np.zeros((len(bounds), NUM_BINS))
    for row, bound in enumerate(bounds):
        for place, term in bound.terms:
            sums[row, min(int(place * NUM_BINS), NUM_BINS - 1)] += term
    error = sums.std(axis=0, ddof=1) / len(bounds) ** 0.5 if len(bounds) > 1 else np.zeros(NUM_BINS)
    return sums.mean(axis=0), error


def draw_terms(bounds: Sequence[ImageBound], output: Path) -> None:
    """Draw what each part of the path adds to the bound, in bits per dimension, into a PNG.

    Raises:
        UserError: the disk is full or not writable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    mean, error = binned(bounds)
    at = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    axes.bar(at, mean, width=0.9 / NUM_BINS, yerr=error, capsize=2, error_kw={"linewidth": 1})
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("what each part of the path adds to the bound", loc="left", fontsize=11, fontweight="bold")
    axes.set_title("± standard error", loc="right", fontsize=8, color="0.35")
    axes.set_xlabel("noise level, from the least (0) to the most (1)")
    axes.set_ylabel("bits per dimension")
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None, CURVES_CHUNK: "ldm likelihood"})
    write_bytes(output, png.getvalue())
