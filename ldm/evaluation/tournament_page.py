"""The page of a tournament: the verdict, the ranking, curves, and the same images of each candidate."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.evaluation.evaluation_page import Shown, render, shown
from ldm.evaluation.intervals import Estimate
from ldm.evaluation.svg_plot import line_plot
from ldm.evaluation.tournament import STEP, Outcome, Standing
from ldm.evaluation.tournament_job import NUM_SHOWN, Candidate, Contest
from ldm.io.files import write_bytes

MAX_SHOWN = 24
"""Candidates whose images are shown, the best first."""
NAMES = {
    "step": "optimizer step",
    "guidance_scale": "guidance scale",
    "num_inference_steps": "sampling steps",
}


def facts_of(outcome: Outcome, candidates: Sequence[Candidate], metric: str) -> dict[str, Any]:
    """The result as JSON, the best candidate first."""
    return {
        "metric": metric,
        "winner": None if outcome.winner is None else candidates[outcome.winner].label,
        "possible": [candidates[index].label for index in outcome.possible],
        "num_images": outcome.num_images,
        "num_rounds": outcome.num_rounds,
        "error_of_each_test": outcome.error,
        "ranking": [_standing(each, candidates) for each in outcome.standings],
    }


def _standing(each: Standing, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        **candidates[each.candidate].to_dict(),
        "num_images": each.num_images,
        "value": each.estimate.value,
        "low": each.estimate.low,
        "high": each.estimate.high,
        "worse_than": None if each.worse_than is None else candidates[each.worse_than].label,
        "dropped_after_round": each.dropped_after,
    }


def write_tournament_page(folder: Path, facts: Mapping[str, Any], outcome: Outcome, contest: Contest) -> Path:
    """Write `tournament.html`, and `curves.svg` if anything varies that curves can be drawn over."""
    curves = draw_curves(outcome, contest.candidates, contest.metric)
    if curves:
        write_bytes(folder / "curves.svg", curves.encode())
    page = render("tournament.html.jinja", facts=facts, curves=curves, grids=list(_grids(outcome, contest)))
    write_bytes(folder / "tournament.html", page.encode())
    return folder / "tournament.html"


def draw_curves(outcome: Outcome, candidates: Sequence[Candidate], metric: str) -> str:
    """The measurement over the first of checkpoint, guidance and sampling steps that varies; empty if none does."""
    named = {each.candidate: (_axes(candidates[each.candidate]), each.estimate) for each in outcome.standings}
    for axis, name in NAMES.items():
        known = [axes[axis] for axes, _ in named.values() if axis in axes]
        if len(set(known)) < 2:
            continue
        series: dict[str, dict[float, Estimate]] = {}
        for index, (axes, estimate) in sorted(named.items()):
            if axis in axes:
                series.setdefault(_rest(candidates[index], axis), {})[axes[axis]] = estimate
        return line_plot(series, name, metric)
    return ""


def _axes(candidate: Candidate) -> dict[str, float]:
    step = {} if candidate.step is None else {"step": float(candidate.step)}
    return step | dict(candidate.settings)


def _rest(candidate: Candidate, axis: str) -> str:
    """What a candidate's line is called: all but the axis."""
    settings = tuple(each for each in candidate.settings if each[0] != axis)
    step = None if axis == "step" else candidate.step
    return Candidate(candidate.source, candidate.name, step, candidate.weights, settings).label


def _grids(outcome: Outcome, contest: Contest) -> Iterator[tuple[str, list[Shown]]]:
    for each in outcome.standings[:MAX_SHOWN]:
        small = contest.features(each.candidate, STEP)["thumbnails"][:NUM_SHOWN]
        label = contest.candidates[each.candidate].label
        yield label, [shown(Image.fromarray(image.numpy())) for image in small]
