"""`ldm compare RUN...`: which checkpoint, average and settings give the best images, within a budget."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.evaluation.evaluation_job import EvaluationJob
    from ldm.evaluation.tournament import Outcome
    from ldm.evaluation.tournament_job import Candidate, Contest, Metric

IMAGES_PER_CANDIDATE = 64
"""The default budget."""


@dataclass(frozen=True)
class Varied:
    """What candidates differ in besides their models; empty: the model's own, or the average.

    Attributes:
        checkpoints: "all" of a run, or "last".
    """

    checkpoints: str = "all"
    weights: tuple[str, ...] = ()
    guidance_scale: tuple[float, ...] = ()
    num_inference_steps: tuple[float, ...] = ()


def run_tournament(
    sources: Sequence[Path],
    varied: Varied,
    metric: "Metric | None",
    budget: int | None,
    *,
    quiet: bool,
    **planned: Any,
) -> "tuple[Contest, Outcome]":
    """Play a tournament between all candidates.

    Args:
        metric: None: kid with --data, otherwise clip.
        budget: images in all.
        planned: as `ldm.cli.evaluate.plan_job` takes it.

    Raises:
        UserError: there are fewer than two candidates, the budget is too small, or the metric cannot be measured.
    """
    from ldm.demos.shapes_judge import follows
    from ldm.evaluation.tournament import least_budget, play
    from ldm.evaluation.tournament_job import BETTER, MAX_IMAGES, Contest
    from ldm.io.progress import work_bar

    candidates = list(find_candidates(sources, varied))
    number = len(candidates)
    if number < 2:
        raise UserError("one candidate", "name more runs, or several --guidance-scale, --weights or steps")
    least = least_budget(number)
    budget = max(IMAGES_PER_CANDIDATE * number, least) if budget is None else budget
    if budget < least:
        raise UserError(f"--budget {budget} is too small for {number} candidates", f"give {least} or more")
    if budget > MAX_IMAGES:
        raise UserError(f"--budget {budget} is above {MAX_IMAGES}", "give a smaller one")
    job, chosen = plan(metric, quiet=quiet, **planned)
    with work_bar("image", hidden=quiet) as bar:
        contest = Contest(
            candidates,
            job,
            chosen,
            open_model,
            follows if chosen == "judge" else None,
            lambda done: bar.show(done, budget),
        )
        bar.say("making images")
        outcome = play(number, budget, contest.make, contest.scores, better=BETTER[chosen])
    return contest, outcome


def plan(metric: "Metric | None", *, quiet: bool, **planned: Any) -> "tuple[EvaluationJob, Metric]":
    """What all candidates share, and the metric.

    Raises:
        UserError: the metric lacks what it needs.
    """
    from ldm.cli.evaluate import plan_job
    from ldm.evaluation.evaluate import LEAST_IMAGES
    from ldm.evaluation.tournament_job import MAX_IMAGES

    if planned["data"] is None and planned["prompt_file"] is None:
        raise UserError("nothing to compare the runs on", "give --data PATH, --prompts FILE, or both")
    metric = metric or ("kid" if planned["data"] is not None else "clip")
    if metric == "kid" and planned["data"] is None:
        raise UserError("--metric kid needs real images", "give --data PATH")
    if metric == "clip" and planned["options"]["clip"] is None:
        raise UserError("the metric clip needs a CLIP model", "give --clip FOLDER, or --data PATH for kid")
    job = plan_job("", num_images=MAX_IMAGES, quiet=quiet, **planned)
    if metric == "kid" and len(job.sample_ids) < LEAST_IMAGES:
        raise UserError(
            f"--data has {len(job.sample_ids)} usable images", f"KID needs {LEAST_IMAGES} or more"
        )
    if metric == "judge":
        check_judged(job.prompts)
    return job, metric


def find_candidates(sources: Sequence[Path], varied: Varied) -> "Iterator[Candidate]":
    """Every checkpoint of each run, or the model itself, with every combination of what is varied.

    Raises:
        UserError: averages are chosen for a model that is not a checkpoint; a source is given twice.
    """
    from ldm.cli.plot import run_names
    from ldm.evaluation.tournament_job import Candidate

    settings = [
        [(name, value) for value in values]
        for name in ("guidance_scale", "num_inference_steps")
        if (values := getattr(varied, name))
    ]
    for source, name in zip(sources, run_names(list(sources)), strict=True):
        found = find_checkpoints(source, varied.checkpoints)
        if not found and varied.weights:
            raise UserError(f"{source} has no checkpoint", "omit --weights, or name a run or checkpoint")
        models: list[tuple[str, int | None, str | None]] = [(str(source), None, None)]
        if found:
            steps = {each: int(each.name.removeprefix("step-")) for each in found}
            models = [
                (str(each), steps[each], weights)
                for each in found
                for weights in varied.weights or ("average",)
            ]
        for (place, step, weights), chosen in product(models, product(*settings)):
            shown = name if step is None or source not in found else source.resolve().parents[1].name
            yield Candidate(place, shown, step, weights, tuple(chosen))


def find_checkpoints(source: Path, which: str) -> list[Path]:
    """The checkpoints of a run, oldest first, or the one that is named; none for a model."""
    from ldm.cli.checkpoint import FOLDER

    if FOLDER.fullmatch(source.name) and (source / "state.json").is_file():
        return [source]
    found = [each for each in source.glob("checkpoints/step-*") if (each / "state.json").is_file()]
    found.sort(key=lambda each: int(each.name.removeprefix("step-")))
    return found[-1:] if which == "last" else found


@contextmanager
def open_model(candidate: "Candidate") -> Iterator[str]:
    """Where a candidate's model is; a checkpoint is written as a temporary model."""
    from ldm.cli.checkpoint import model_of

    with model_of(candidate.source, candidate.weights) as (place, _):
        yield place


def check_judged(prompts: Sequence[str]) -> None:
    """Raise UserError if a prompt is no caption that the judge can read."""
    from ldm.demos.shapes_judge import is_caption

    for prompt in dict.fromkeys(prompts):
        if not is_caption(prompt):
            raise UserError(
                f"the judge cannot read the prompt {prompt!r}", "it reads captions of drawn shapes only"
            )


def verdict_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The verdict, and a line for each candidate, the best first."""
    if facts["winner"]:
        yield f"the best by {facts['metric']}: {facts['winner']}"
    else:
        yield f"cannot tell which is the best by {facts['metric']}: {len(facts['possible'])} may be"
    width = max(len(row["label"]) for row in facts["ranking"])
    for row in facts["ranking"]:
        result = f"worse than {row['worse_than']}" if row["worse_than"] else "may be the best"
        result = "the best" if row["label"] == facts["winner"] else result
        limits = f"[{row['low']:.4g}, {row['high']:.4g}]"
        yield f"  {row['label']:{width}}  {row['value']:<9.4g} {limits:22} N = {row['num_images']:<5} {result}"
    yield f"{facts['num_images']} images"
