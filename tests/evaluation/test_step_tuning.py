"""Tuned timesteps: the search on distances that are known, and the command on a tiny model."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ldm.cli.app import app
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.errors import UserError
from ldm.evaluation import step_tuning
from ldm.evaluation.step_tuning import (
    StepMeter,
    distinct,
    moves,
    num_tries,
    search_timesteps,
    spaced_timesteps,
    starts_for,
)
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_models import make_sd2

BEST = (990, 700, 420, 150)


def distance(timesteps: tuple[int, ...]) -> float:
    """Smallest at BEST, of which each timestep counts on its own."""
    return sum(abs(t - best) for t, best in zip(timesteps, BEST, strict=True))


def test_the_search_comes_close_to_the_best_and_never_makes_it_worse() -> None:
    starts = [(999, 749, 499, 249), (900, 300, 200, 100)]
    tries = []
    found = search_timesteps(distance, starts, 999, lambda: tries.append(0))
    assert distance(found) < 0.35 * min(map(distance, starts))
    assert found == search_timesteps(distance, starts, 999)
    assert len(tries) <= num_tries(4, len(starts))
    assert list(found) == sorted(set(found), reverse=True) and found[-1] >= 0 and found[0] <= 999
    assert search_timesteps(distance, [BEST], 999) == BEST


def test_a_timestep_stays_between_its_neighbours() -> None:
    assert moves((999, 500, 0), 1, 0.5, 999) == [(999, 250, 0), (999, 750, 0)]
    assert moves((999, 500, 0), 0, 0.5, 999) == [(749, 500, 0)]
    assert moves((2, 1, 0), 1, 0.5, 2) == []
    assert moves((999, 500, 3), 2, 0.5, 999)[0] == (999, 500, 1)


def test_timesteps_that_coincide_are_set_apart() -> None:
    assert distinct([999, 999, 500, 0, 0], 999) == (999, 998, 500, 1, 0)
    assert distinct([5, 5, 5], 5) == (5, 4, 3)


def test_the_starts_have_the_spacing_of_karras() -> None:
    """The noise levels to the power 1/rho are evenly spaced, up to the table's steps."""
    path = DDPMPath(ScheduleSettings())
    found = spaced_timesteps(path, 6, 999, 7.0)
    roots = [sigma ** (1 / 7) for sigma in path.noise_to_signal([float(t) for t in found])]
    gaps = [first - second for first, second in pairwise(roots)]
    assert gaps == pytest.approx([sum(gaps) / 5] * 5, rel=0.02)
    assert found[0] == 999


def test_the_command_prints_timesteps_that_generate_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_tuning, "NUM_REFERENCE_STEPS", 40)
    monkeypatch.setattr(step_tuning, "MOVES", (0.5,))
    save_parts(make_sd2(tmp_path), tmp_path / "model")
    model = str(tmp_path / "model")
    arguments = [
        "tune-steps",
        model,
        "--steps",
        "3",
        "--scheduler",
        "dpmpp_2m",
        "--json",
        "--guidance-scale",
        "2",
    ]
    (tmp_path / "prompts.txt").write_text("a red apple\na small green circle\n")
    found = json.loads(
        CliRunner().invoke(app, [*arguments, "--prompts", str(tmp_path / "prompts.txt")]).stdout
    )
    assert 0 < found["distance"] < found["usual"]
    assert found["usual"] == found["usual_by_steps"]["3"]
    pipeline = Pipeline(load_parts(model))
    pipeline.generate("a red apple", scheduler="dpmpp_2m", timesteps=found["timesteps"])
    for scheduler, reason in (
        ("euler_a", "adds noise at each step"),
        ("ddim", "cannot sample at given timesteps"),
    ):
        with pytest.raises(UserError, match=reason):
            starts_for(pipeline, scheduler, 3)


def test_the_distance_to_the_reference_itself_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_tuning, "NUM_REFERENCE_STEPS", 5)
    meter = StepMeter(Pipeline(make_sd2(tmp_path)), ["a"], scheduler="euler", guidance_scale=1.0, seed=3)
    assert meter.of_usual(5) == 0 < meter.of_usual(4)
