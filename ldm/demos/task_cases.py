"""How well a model changes images as it is told: the share of images that are right, with exact intervals.

A case is an image to change and a judge of the result. What the shares can mean is measured beside them: with the
images wanted after the autoencoder's round trip (the ceiling), with the prompts of other cases (the null), and for
edits with the image before the edit (unedited).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from ldm.demos.emoji_composed_score import round_trip
from ldm.errors import UserError
from ldm.evaluation.metrics import exact_interval
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid
from ldm.noise import permutation
from ldm.pipeline.pipeline import Pipeline

BATCH = 50
NUM_SHOWN = 32
SHOWN_PX = 96
OnProgress = Callable[[str, int], None]


@dataclass(frozen=True)
class Case:
    """One image to make, and its judge.

    Attributes:
        kind: what the shares are listed under, besides "all".
        prompt: an instruction or a caption.
        image: the image given.
        mask: white where it is made anew, or None.
        wanted: the image that is right in every pixel.
        verdict: which attributes of an image made are right, under "all" whether all of them are.
    """

    kind: str
    prompt: str
    image: Image.Image
    mask: Image.Image | None
    wanted: Image.Image
    verdict: Callable[[Image.Image], Mapping[str, bool]] = field(repr=False)

    @property
    def shown(self) -> Image.Image:
        """The image given, grey under the mask."""
        grey = Image.new("RGB", self.image.size, (128, 128, 128))
        return Image.composite(grey, self.image, self.mask) if self.mask else self.image


def shares(cases: Sequence[Case], images: Sequence[Image.Image]) -> dict[str, dict[str, dict[str, float]]]:
    """For all cases and for each kind, by attribute: share, low, high (exact, 95 %), num_right and num_judged."""
    verdicts = [case.verdict(image) for case, image in zip(cases, images, strict=True)]
    found = {}
    for kind in ("all", *dict.fromkeys(case.kind for case in cases)):
        some = [verdict for case, verdict in zip(cases, verdicts, strict=True) if kind in ("all", case.kind)]
        found[kind] = {name: _share([verdict[name] for verdict in some]) for name in some[0]}
    return found


def _share(right: Sequence[bool]) -> dict[str, float]:
    low, high = exact_interval(sum(right), len(right))
    counts = {"num_right": sum(right), "num_judged": len(right)}
    return {"share": sum(right) / len(right), "low": low, "high": high, **counts}


def error_elsewhere(cases: Sequence[Case], images: Sequence[Image.Image]) -> float:
    """The mean absolute difference of levels (of 255) in the pixels that should not change.

    Those are the pixels outside the mask in which the image wanted equals the image given.
    """
    errors = []
    for case, image in zip(cases, images, strict=True):
        before, wanted, made = (np.asarray(each, np.float32) for each in (case.image, case.wanted, image))
        same = (before == wanted).all(axis=2)
        if case.mask:
            same &= np.asarray(case.mask) == 0
        errors.append(float(np.abs(made - before)[same].mean()))
    return float(np.mean(errors))


def score_cases(
    pipeline: Pipeline,
    task: str,
    cases: Mapping[str, Sequence[Case]],
    dest: Path,
    *,
    command: str,
    limits_only: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: OnProgress = lambda part, done: None,
) -> dict[str, Any]:
    """Write `report.json` and contact sheets into `dest`, a new folder; returns the report.

    Args:
        task: the one that the model is to do.
        cases: those of the parts "held_out" and "seen".
        command: what measures this again, for the model card.
        limits_only: measure only what needs no denoiser, before one is trained: any model with the autoencoder will do.
        settings: further arguments of `Pipeline.generate`, for all images.
        on_progress: called with (part of the report, images of it that are made).

    Returns:
        `scores`: the `held_out` and `seen` shares of the model, see `shares`, and on the held-out cases `ceiling`,
        `null` and for edits `unedited`. `error_elsewhere`: of the model and of the autoencoder's round trip.

    Raises:
        UserError: the model does another task; there are too few cases; `dest` exists, or the disk is full.
    """
    if (fewest := min(map(len, cases.values()))) < 2:
        raise UserError(f"num_cases is {fewest}", "use 2 or more: the null needs prompts of other cases")
    with new_folder(dest, manifest=False) as folder:
        scores, errors = _limits(pipeline, cases["held_out"])
        made = {} if limits_only else {**cases, "null": _shuffled(cases["held_out"])}
        for part, some in made.items():
            images = make_images(pipeline, task, some, settings, partial(on_progress, part))
            scores[part] = shares(some, images)
            contact_sheet(some, images).save(folder / f"{part.replace('_', '-')}.png")
            if part == "held_out":
                errors["model"] = error_elsewhere(some, images)
        report = {
            "task": task,
            "command": command,
            "weights_hash": pipeline.weights_hash,
            "model_parts": pipeline.identity.image_parts if pipeline.identity else None,
            "size_px": cases["held_out"][0].image.width,
            "settings": dict(settings),
            "scores": scores,
            "error_elsewhere": errors,
        }
        write_json(folder / "report.json", report)
    return report


def make_images(
    pipeline: Pipeline,
    task: str,
    cases: Sequence[Case],
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Image.Image]:
    """The image of each case; that of case i has seed i.

    Raises:
        UserError: the model does another task with these images.
    """
    made: list[Image.Image] = []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        found = pipeline.generate(
            [case.prompt for case in part],
            image=[case.image for case in part],
            mask=None if part[0].mask is None else [case.mask for case in part if case.mask],
            seeds=list(range(start, start + len(part))),
            batch_size=BATCH,
            progress=False,
            **settings,
        )
        if found.records[0].task != task:
            raise UserError(
                f"the model does {found.records[0].task} with these images, not {task}",
                f"choose a model for {task}",
            )
        made += found.images
        on_progress(len(made))
    return made


def _shuffled(cases: Sequence[Case]) -> list[Case]:
    """The cases, each with the prompt of another one."""
    order = permutation(len(cases), "shapes null")
    prompt_of = {one: cases[other].prompt for one, other in zip(order, order[1:] + order[:1], strict=True)}
    return [replace(case, prompt=prompt_of[index]) for index, case in enumerate(cases)]


def _limits(pipeline: Pipeline, cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, float]]:
    """What the autoencoder alone reaches: the ceiling with its error elsewhere, and for edits the unedited image."""
    decoded = round_trip(pipeline, [case.wanted for case in cases])
    ceiling = [
        Image.composite(after, case.image, case.mask) if case.mask else after
        for case, after in zip(cases, decoded, strict=True)
    ]
    found = {"ceiling": shares(cases, ceiling)}
    if cases[0].mask is None:
        found["unedited"] = shares(cases, round_trip(pipeline, [case.image for case in cases]))
    return found, {"ceiling": error_elsewhere(cases, ceiling)}


def contact_sheet(cases: Sequence[Case], images: Sequence[Image.Image]) -> Image.Image:
    """The first cases, two a row: the image given with its prompt, the one made with its verdict, the one wanted."""
    shown, captions = [], []
    for case, image in list(zip(cases, images, strict=True))[:NUM_SHOWN]:
        wrong = [name for name, right in case.verdict(image).items() if not right and name != "all"]
        shown += [each.resize((SHOWN_PX, SHOWN_PX)) for each in (case.shown, image, case.wanted)]
        captions += [case.prompt, f"not {', '.join(wrong)}" if wrong else "right", "wanted"]
    return image_grid(shown, num_columns=6, captions=captions)
