"""`ldm plot`: what is drawn from a run's rows, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.cli.plot import run_names
from ldm.evaluation import curves
from ldm.evaluation.curves import COLORS, draw_curves, panels_of, read_metrics, series, smoothed
from tests.support.tiny_curves import LOSSES, rows_of, write_run


def axes_of(draw: Any, runs: dict[str, list[dict[str, Any]]]) -> Axes:
    axes = Figure().add_subplot()
    draw(axes, runs)
    return axes


def plot(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plot", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


# What is drawn


def test_the_smoothed_loss_is_a_centred_mean_of_finite_values() -> None:
    values = np.arange(200.0)
    assert smoothed(values)[:195] == pytest.approx(
        values[:195]
    )  # a straight line is unchanged, from its start
    assert smoothed(values)[199] == pytest.approx(np.arange(194, 200).mean())
    values[100] = np.nan
    assert smoothed(values)[102] == pytest.approx(np.delete(values, 100)[97:107].mean())
    noisy = np.random.default_rng(0).normal(size=4000)
    assert smoothed(noisy)[100:-100].std() < 0.1
    assert len(smoothed(np.array([]))) == 0
    assert smoothed(np.array([3.0])) == pytest.approx([3.0])


def test_a_step_logged_twice_counts_with_its_last_row() -> None:
    steps, losses = series(
        [{"step": 2, "loss": 1}, {"step": 1, "loss": 3}, {"step": 2, "loss": 5}, {"step": 9}], "loss"
    )
    assert (steps.tolist(), losses.tolist()) == ([1, 2], [3, 5])


def test_the_loss_is_drawn_raw_and_smoothed() -> None:
    losses = list(np.linspace(1, 0.5, 100) + 0.1 * (np.arange(100) % 2))
    raw, dark = axes_of(curves.draw_loss, {"a": rows_of(losses)}).lines
    assert raw.get_ydata() == pytest.approx(losses)
    assert raw.get_alpha() < 1
    assert dark.get_ydata() == pytest.approx(smoothed(np.array(losses)))
    assert dark.get_color() == raw.get_color() == COLORS[0]


def test_the_validation_loss_has_its_standard_error_and_its_lowest_marked() -> None:
    axes = axes_of(curves.draw_validation, {"a": rows_of([3.0, 1.0, 2.0])})
    line, ring = axes.lines
    assert line.get_ydata().tolist() == [6.0, 2.0, 4.0]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([2.0], [2.0])
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(6.3)
    assert edges[:, 1].min() == pytest.approx(1.9)


def test_the_learning_rate_is_in_the_unit_of_its_axis() -> None:
    axes = axes_of(curves.draw_learning_rate, {"a": rows_of(), "b": rows_of()[:3]})
    assert axes.get_ylabel() == "learning rate, in $10^{-4}$"
    assert axes.lines[0].get_ydata() == pytest.approx([2 / step for step in range(1, 6)])
    assert [line.get_color() for line in axes.lines] == COLORS[:2]
    flat = [{"step": 1, "learning_rate": 0.0}]
    assert axes_of(curves.draw_learning_rate, {"a": flat}).lines[0].get_ydata().tolist() == [0]


def test_the_tenths_are_curves_of_one_run_or_profiles_of_several() -> None:
    rows = rows_of([*LOSSES, *[0.3] * 10], tenths=True)
    axes = axes_of(curves.draw_tenths_over_steps, {"a": rows})
    assert len(axes.lines) == 10
    assert axes.lines[3].get_ydata()[0] == pytest.approx(7.0)
    axes = axes_of(curves.draw_last_tenths, {"a": rows, "b": rows})
    assert [len(line.get_ydata()) for line in axes.lines] == [10, 10]
    assert axes.lines[0].get_ydata() == pytest.approx([0.3 * (10 - tenth) for tenth in range(10)])


def test_there_is_a_panel_for_what_was_logged_only() -> None:
    assert panels_of({"a": [{"step": 1}]}) == []
    assert panels_of({"a": [{"step": 1, "loss": 1.0}]}) == [curves.draw_loss]
    assert panels_of({"a": rows_of()}) == [
        curves.draw_loss, curves.draw_validation, curves.draw_learning_rate,
    ]  # fmt: skip
    assert panels_of({"a": rows_of(tenths=True)})[3] is curves.draw_tenths_over_steps
    assert panels_of({"a": rows_of(), "b": rows_of(tenths=True)})[3] is curves.draw_last_tenths


def test_every_axis_says_what_it_shows_and_a_wide_span_is_logarithmic() -> None:
    runs = {"a": rows_of(tenths=True)}
    for draw in panels_of(runs):
        axes = axes_of(draw, runs)
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    assert axes_of(curves.draw_loss, runs).get_yscale() == "log"
    assert axes_of(curves.draw_loss, {"a": rows_of([1.0, 0.5])}).get_yscale() == "linear"


def test_plots_are_reproducible(tmp_path: Path) -> None:
    runs = {"a": rows_of(tenths=True), "b": rows_of([float("nan"), 1.0])}
    for name in ("one.png", "two.png"):
        draw_curves(runs, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (1920, 1260)


# The command


def test_a_run_is_drawn_into_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of())
    assert plot(run) == (0, f"{run / 'curves.png'}\n", "")
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"


def test_several_runs_are_overlaid(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "denoiser", rows_of()) for name in "ab"]
    assert run_names(runs) == ["a/denoiser", "b/denoiser"]
    assert run_names(runs[:1]) == ["denoiser"]
    assert plot(*runs, "--output", tmp_path / "new" / "both.png")[0] == 0
    assert (tmp_path / "new" / "both.png").is_file()
    assert not (runs[0] / "curves.png").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    run, empty = write_run(tmp_path / "run", rows_of()), write_run(tmp_path / "empty", [])
    for arguments, message in {
        (tmp_path,): f"error: {tmp_path} has no metrics.jsonl: name the run_dir of a training run\n",
        (
            run,
            empty,
        ): "error: several runs but no --output: name the PNG to write, such as --output curves.png\n",
        (run, run, "--output", "x.png"): "error: a run is given twice: name each run once\n",
        (run, "--output", "x.jpg"): "error: --output x.jpg is not a PNG: name a file that ends in .png\n",
        (empty,): "error: no logged steps in empty: train for at least log_every steps\n",
    }.items():
        assert plot(*arguments) == (2, "", message)


def test_a_truncated_last_row_is_ignored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert read_metrics(run) == read_metrics(run / "metrics.jsonl") == rows_of()
    assert read_metrics(tmp_path) == []


def test_only_curves_are_replaced(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of())
    assert plot(run)[1] == plot(run)[1] == f"{run / 'curves.png'}\n"
    for name in ("curves.png", "mine.png"):
        Image.new("RGB", (4, 4)).save(run / name)
    before = (run / "curves.png").read_bytes()
    code, _, said = plot(run, "--output", run / "mine.png")
    assert code == 2 and "mine.png exists already" in said
    assert plot(run)[:2] == (0, f"{run / 'curves-2.png'}\n")
    assert (run / "curves.png").read_bytes() == (run / "mine.png").read_bytes() == before
