"""Plots of training runs from their `metrics.jsonl`: loss, validation loss, learning rate, loss by timestep."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ldm.errors import UserError
from ldm.io.files import write_bytes
from ldm.io.json_files import parse_json
from ldm.io.opening import read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = "metrics.jsonl"
CURVES_CHUNK = "ldm_curves"
"""The text chunk of the curves that this program drew."""
"""The file in a run directory that has one JSON object per logged step."""

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Row]]
Numbers = npt.NDArray[np.float64]

TENTHS = [f"loss_t{tenth}" for tenth in range(10)]
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""Okabe and Ito's palette, safe for colour-blind readers, without its yellow, which is faint on white."""
MEASURED = {"kid": "KID", "clip_score": "CLIP score", "judge": "prompts followed"}
"""The measurements of generated images that a row may hold, and their titles."""
SMOOTH_FRACTION = 0.05
"""The smoothed line is a moving mean over this share of a curve's points."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, given its directory or the file; empty if there is no file.

    A truncated last line, as a killed run leaves it, is ignored.

    Raises:
        UserError: another line is not a JSON object with a `step`.
    """
    path = run / METRICS if run.is_dir() else run
    if not path.is_file():
        return []
    try:
        lines = read_text(path).splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "restore the file") from None
    return parse_rows(lines, path)


def parse_rows(lines: Sequence[str], path: Path, first: int = 1) -> list[dict[str, Any]]:
    """The rows in lines of a `metrics.jsonl`, each with its line end; errors as `read_metrics`.

    Args:
        path: named in errors.
        first: the number of the first line in the file.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, first):
        try:
            row = parse_json(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError, OverflowError):
            if number == first + len(lines) - 1 and not line.endswith("\n"):
                break
            raise UserError(f"{path}, line {number} is not a logged step", "remove that line") from None
    return rows


def draw_curves(runs: Runs, output: Path) -> None:
    """Draw the curves of one run, or of several overlaid, into a PNG.

    There is a panel for each of these that was logged: the loss (light as logged, dark smoothed), the validation loss
    with its standard error, measurements of generated images, the learning rate, and the loss by tenth of the timesteps
    (for one run over the steps, for several averaged over the last tenth of the rows).

    Args:
        runs: the rows of each run, by name.

    Raises:
        UserError: there is nothing to draw, or the disk is full or not writable.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    if not panels:
        raise UserError(f"no logged steps in {', '.join(runs)}", "train for at least log_every steps")
    num_columns = min(2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(6.4 * num_columns, 4.0 * num_rows + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, draw in enumerate(panels, 1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, runs)
    if len(runs) > 1:
        figure.legend(
            handles=_run_lines(runs), loc="outside upper center", ncols=min(4, len(runs)), frameon=False
        )
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None, CURVES_CHUNK: "ldm plot"})
    write_bytes(output, png.getvalue())


def panels_of(runs: Runs) -> "list[Callable[[Axes, Runs], None]]":
    """The functions that draw the panels, in order."""
    names = {name for rows in runs.values() for row in rows for name in row}
    tenths = draw_tenths_over_steps if len(runs) == 1 else draw_last_tenths
    panels: list[tuple[set[str], Callable[[Axes, Runs], None]]] = [
        ({"loss"}, draw_loss),
        ({"validation_loss"}, draw_validation),
        *(({key}, partial(draw_measure, key=key)) for key in MEASURED),
        ({"learning_rate"}, draw_learning_rate),
        (set(TENTHS), tenths),
    ]
    return [draw for wanted, draw in panels if wanted & names]


def draw_loss(axes: "Axes", runs: Runs) -> None:
    """The training loss of each run: light as logged, dark smoothed."""
    drawn = []
    for color, rows in zip(_colors(runs), runs.values(), strict=True):
        steps, losses = series(rows, "loss")
        smooth = smoothed(losses)
        axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=color, linewidth=1.6, **_dots(steps))
        drawn.append(smooth)
    _scale(axes, drawn)
    _name(axes, "training loss", "loss", f"dark: mean of {SMOOTH_FRACTION:.0%} of the rows")


def draw_validation(axes: "Axes", runs: Runs) -> None:
    """The validation loss of each run, with a band of one standard error on each side and its minimum marked."""
    drawn = []
    for color, rows in zip(_colors(runs), runs.values(), strict=True):
        steps, losses = series(rows, "validation_loss")
        with_errors = [row for row in rows if "validation_loss_stderr" in row and "validation_loss" in row]
        axes.plot(steps, losses, color=color, linewidth=1.6, marker="o", markersize=2.5)
        if with_errors:
            at, middle = series(with_errors, "validation_loss")
            error = series(with_errors, "validation_loss_stderr")[1]
            axes.fill_between(at, middle - error, middle + error, color=color, alpha=0.2, linewidth=0)
        if np.isfinite(losses).any():
            best = int(np.nanargmin(losses))
            axes.plot(steps[best], losses[best], "o", color=color, markerfacecolor="white", markersize=7)
        drawn.append(losses)
    _scale(axes, drawn)
    _name(axes, "validation loss", "loss", "held-out samples, ± standard error; ring: lowest")


def draw_measure(axes: "Axes", runs: Runs, key: str) -> None:
    """A measurement of images generated during training, with a band for its 95 % interval."""
    for color, rows in zip(_colors(runs), runs.values(), strict=True):
        steps, values = series(rows, key)
        axes.plot(steps, values, color=color, linewidth=1.6, marker="o", markersize=2.5)
        with_limits = [row for row in rows if f"{key}_low" in row]
        if with_limits:
            at, low = series(with_limits, f"{key}_low")
            axes.fill_between(
                at, low, series(with_limits, f"{key}_high")[1], color=color, alpha=0.2, linewidth=0
            )
    _name(axes, MEASURED[key], key, "generated images, 95 % interval")


def draw_learning_rate(axes: "Axes", runs: Runs) -> None:
    """The learning rate of each run, in units of the largest power of ten not above the maximum."""
    drawn = [series(rows, "learning_rate") for rows in runs.values()]
    highest = max(float(rates.max(initial=0)) for _, rates in drawn)
    power = math.floor(math.log10(highest)) if highest > 0 else 0
    for color, (steps, rates) in zip(_colors(runs), drawn, strict=True):
        axes.plot(steps, rates / 10.0**power, color=color, linewidth=1.6, **_dots(steps))
    axes.set_ylim(bottom=0)
    _name(axes, "learning rate", f"learning rate, in $10^{{{power}}}$")


def draw_tenths_over_steps(axes: "Axes", runs: Runs) -> None:
    """One run's smoothed loss for each tenth of the timesteps, dark for low noise, light for high."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    (rows,) = runs.values()
    palette = ListedColormap(
        [colormaps["viridis"](tenth / 10) for tenth in range(10)]
    )  # without its pale end
    colors = ScalarMappable(BoundaryNorm(np.arange(-0.5, 10), 10), palette)
    drawn = []
    for tenth, name in enumerate(TENTHS):
        steps, losses = series(rows, name)
        smooth = smoothed(losses)
        axes.plot(steps, smooth, color=palette(tenth), linewidth=1.4, **_dots(steps))
        drawn.append(smooth)
    bar = axes.figure.colorbar(colors, ax=axes, ticks=range(10), pad=0.02)
    bar.set_label("tenth of the timesteps (9: most noise)")
    bar.outline.set_visible(False)
    bar.minorticks_off()
    _scale(axes, drawn)
    _name(axes, "loss per tenth of the timesteps", "loss", f"mean of {SMOOTH_FRACTION:.0%} of the rows")


def draw_last_tenths(axes: "Axes", runs: Runs) -> None:
    """Each run's loss by tenth of the timesteps, averaged over the last tenth of its rows."""
    drawn = []
    for color, rows in zip(_colors(runs), runs.values(), strict=True):
        losses = [series(rows, name)[1] for name in TENTHS]
        means = np.array([x[-max(1, len(x) // 10) :].mean() if len(x) else math.nan for x in losses])
        axes.plot(range(10), means, color=color, linewidth=1.6, marker="o", markersize=3)
        drawn.append(means)
    _scale(axes, drawn)
    _name(axes, "loss per tenth of the timesteps", "loss", "mean of the last tenth of the rows")
    axes.set_xlabel("tenth of the timesteps (9: most noise)")
    axes.set_xticks(range(10))


def series(rows: Sequence[Row], name: str) -> tuple[Numbers, Numbers]:
    """The steps [N] at which a value was logged, and the values [N]; for a step logged twice the last value counts."""
    found = {row["step"]: float(row[name]) for row in rows if name in row}
    steps = sorted(found)
    return np.array(steps, dtype=np.float64), np.array([found[step] for step in steps], dtype=np.float64)


def smoothed(values: Numbers) -> Numbers:
    """A moving mean [N] of the finite values, over SMOOTH_FRACTION of the points.

    It is centred. At the start, where losses fall fast, the window shrinks so that it stays symmetric.
    """
    half = int(len(values) * SMOOTH_FRACTION / 2)
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.where(good, values, 0.0).cumsum()])
    counts = np.concatenate([[0], good.cumsum()])
    at = np.arange(len(values))
    back = np.minimum(half, at)
    low, high = at - back, np.minimum(at + back, len(values) - 1) + 1
    with np.errstate(invalid="ignore"):
        mean: Numbers = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return mean


def _scale(axes: "Axes", drawn: Sequence[Numbers]) -> None:
    """Use a logarithmic axis if the curves span more than a factor of eight: the start would flatten the rest."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = np.concatenate([*drawn, np.array([])])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 8 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _name(axes: "Axes", title: str, unit: str, note: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_title(note, loc="right", fontsize=8, color="0.35")
    axes.set_ylabel(unit)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _dots(steps: Numbers) -> dict[str, Any]:
    """Markers for lines with few points; a single point would be invisible."""
    return {"marker": "o", "markersize": 3} if len(steps) < 10 else {}


def _colors(runs: Runs) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(len(runs))]


def _run_lines(runs: Runs) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=color, label=name) for color, name in zip(_colors(runs), runs, strict=True)]
