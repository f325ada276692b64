"""How well a model of drawn scenes restores, enlarges and follows silhouettes: means over images, with intervals.

Each mean is given beside those of simpler methods on the same images, and the gain over each of them with a paired
interval, which resamples images. What can be reached at all is the ceiling: the true images after the autoencoder's
round trip.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ldm.demos.emoji_composed_score import round_trip
from ldm.demos.shapes_judge import agrees, judge
from ldm.demos.shapes_quality import (
    MEASURED_TASKS,
    MEASURES,
    Case,
    Images,
    Values,
    cases_for,
    enlarged,
    likeness,
    look,
    median_filtered,
)
from ldm.errors import UserError
from ldm.evaluation.metrics import Share, bootstrap_mean
from ldm.evaluation.perceptual import Lpips, check_large_enough, load_lpips
from ldm.io.files import write_json
from ldm.io.folders import new_folder
from ldm.io.images import image_grid
from ldm.pipeline.pipeline import Pipeline

BATCH = 50
NUM_SHOWN = 28
SHOWN_PX = 96
CONTROL_KIND = "segmentation"
OnProgress = Callable[[str, int], None]


def measure_task(
    pipeline: Pipeline,
    task: str,
    dest: Path,
    *,
    num_cases: int = 200,
    size_px: int = 32,
    limits_only: bool = False,
    lpips: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: OnProgress = lambda part, done: None,
) -> dict[str, Any]:
    """Write `report.json` and contact sheets into `dest`, a new folder; returns the report.

    Args:
        task: a name from MEASURED_TASKS, which the model must be able to do.
        num_cases: for the held-out and for the seen combinations each, 2 or more.
        size_px: side of the images; that of the training data.
        limits_only: measure only what needs no denoiser, before one is trained: any model with the autoencoder will do.
        lpips: also measure LPIPS of images that are restored or enlarged.
        settings: further arguments of `Pipeline.generate`, for all images.
        on_progress: called with (part of the report, images of it that are made).

    Returns:
        `quality`: by part ("held_out", "seen", "ceiling" and the simpler methods), kind and measure: mean, low, high,
            num_images. All but "seen" are of the held-out cases. For control, "uncontrolled" is without the hint,
            "unprompted" with an empty prompt, and "null" the model's images beside the hints of other cases.
        `gains`: the same for how much better than each simpler method the model is, image by image, of the held-out
            cases: the difference, for LPIPS that of the negative.
        `as_captioned`: for control, by part, the share of images that the judge finds right in every attribute.

    Raises:
        UserError: the task is not one that is measured, or not one of the model's; LPIPS cannot be measured; there are
            too few cases; `dest` exists, or the disk is full.
    """
    if task not in MEASURED_TASKS:
        raise UserError(f"{task!r} is not measured on shapes", f"choose from {', '.join(MEASURED_TASKS)}")
    distance = _lpips_for(task, size_px, pipeline) if lpips else None
    factor = pipeline.autoencoder.pixels_per_latent
    return measure_cases(
        pipeline,
        task,
        {part: cases_for(task, part, num_cases, size_px, factor) for part in ("held_out", "seen")},
        dest,
        command=f"python scripts/score_tasks.py {task} --model MODEL --output DIR --size-px {size_px}",
        distance=distance,
        limits_only=limits_only,
        settings=settings,
        on_progress=on_progress,
    )


def measure_cases(
    pipeline: Pipeline,
    task: str,
    cases_of: Mapping[str, Sequence[Case]],
    dest: Path,
    *,
    command: str,
    distance: Lpips | None = None,
    limits_only: bool = False,
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: OnProgress = lambda part, done: None,
) -> dict[str, Any]:
    """`measure_task` for any cases.

    Args:
        cases_of: those of the parts "held_out" and "seen".
        command: what measures this again, for the model card.
        distance: measures LPIPS, too.
    """
    if (fewest := min(map(len, cases_of.values()))) < 2:
        raise UserError(f"num_cases is {fewest}", "use 2 or more: an interval needs them")
    held_out, seen = cases_of["held_out"], cases_of["seen"]
    with new_folder(dest, manifest=False) as folder:
        images = _without_denoiser(pipeline, task, held_out)
        if not limits_only:
            images |= _made(pipeline, task, held_out, settings, on_progress)
            images["seen"] = make_images(pipeline, task, seen, settings, partial(on_progress, "seen"))
        cases = {part: seen if part == "seen" else held_out for part in images}
        for part in images.keys() & {"held_out", "seen"}:
            sheet = contact_sheet(cases[part], images[part], MEASURES[task])
            sheet.save(folder / f"{part.replace('_', '-')}.png")
        report = {
            "task": task,
            "command": command,
            "weights_hash": pipeline.weights_hash,
            "model_parts": pipeline.identity.image_parts if pipeline.identity else None,
            "size_px": held_out[0].wanted.width,
            "settings": dict(settings),
            **({"lpips": distance.to_dict()} if distance else {}),
            **_measured(task, cases, images, distance),
        }
        write_json(folder / "report.json", report)
    return report


def _lpips_for(task: str, size_px: int, pipeline: Pipeline) -> Lpips:
    """LPIPS, unless a task has no image to compare with or the images are too small: then UserError."""
    if MEASURES[task] is not likeness:
        raise UserError(f"LPIPS of the task {task}", "leave --lpips out: there is no image to compare with")
    check_large_enough(size_px, size_px)
    return load_lpips(pipeline.device)


def _measured(
    task: str, cases: Mapping[str, Sequence[Case]], images: Mapping[str, Images], lpips: Lpips | None
) -> dict[str, Any]:
    """What the report says of the images of each part."""

    def measure(some: Sequence[Case], made: Images) -> Values:
        more = look(lpips, some, made) if lpips is not None else {}
        return {**MEASURES[task](some, made), **more}

    values = {part: measure(cases[part], some) for part, some in images.items()}
    found: dict[str, dict[str, Any]] = {
        "quality": {part: _means(cases[part], some) for part, some in values.items()}
    }
    if task == "control":
        found["as_captioned"] = {part: _as_captioned(cases[part], some) for part, some in images.items()}
    if "held_out" in images:
        held_out = cases["held_out"]
        if task == "control":  # the same images with the silhouettes of other cases
            values["null"] = measure([*held_out[1:], held_out[0]], images["held_out"])
            found["quality"]["null"] = _means(held_out, values["null"])
        simpler = values.keys() - {"held_out", "seen", "ceiling", "unprompted"}
        found["gains"] = {
            name: _means(held_out, _differences(values["held_out"], values[name])) for name in sorted(simpler)
        }
    return found


def _without_denoiser(pipeline: Pipeline, task: str, cases: Sequence[Case]) -> dict[str, Images]:
    """The true images after the autoencoder's round trip, and what simpler methods make of the images given."""
    found: dict[str, Images] = {"ceiling": round_trip(pipeline, [case.wanted for case in cases])}
    if task == "upscale":
        found["bicubic"] = enlarged(cases)
        found["round_trip"] = round_trip(pipeline, found["bicubic"])
    if task == "restore":
        found["given"] = [case.given for case in cases]
        found["median"] = median_filtered(cases)
        found["round_trip"] = round_trip(pipeline, found["given"])
    return found


def _made(
    pipeline: Pipeline,
    task: str,
    cases: Sequence[Case],
    settings: Mapping[str, Any],
    on_progress: OnProgress,
) -> dict[str, Images]:
    """The model's images: for control also without the hint, and without the prompt."""
    variants: dict[str, Mapping[str, bool]] = {"held_out": {}}
    if task == "control":
        variants |= {"uncontrolled": {"controlled": False}, "unprompted": {"prompted": False}}
    return {
        part: make_images(pipeline, task, cases, settings, partial(on_progress, part), **how)
        for part, how in variants.items()
    }


def make_images(
    pipeline: Pipeline,
    task: str,
    cases: Sequence[Case],
    settings: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Callable[[int], None] = lambda done: None,
    *,
    controlled: bool = True,
    prompted: bool = True,
) -> list[Image.Image]:
    """The image of each case; that of case i has seed i.

    Raises:
        UserError: the model does another task with these images.
    """
    made: dict[int, Image.Image] = {}
    for strength in dict.fromkeys(case.strength for case in cases):
        numbers = [index for index, case in enumerate(cases) if case.strength == strength]
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            found = pipeline.generate(
                [cases[index].prompt if prompted else "" for index in part],
                seeds=part,
                batch_size=BATCH,
                progress=False,
                **{**_arguments(task, [cases[index] for index in part], controlled), **settings},
            )
            done = found.records[0].task
            if task != "control" and done != task:
                raise UserError(
                    f"the model does {done} with these images, not {task}", f"choose a model for {task}"
                )
            made |= zip(part, found.images, strict=True)
            on_progress(len(made))
    return [made[index] for index in range(len(cases))]


def _arguments(task: str, cases: Sequence[Case], controlled: bool) -> dict[str, Any]:
    """What `Pipeline.generate` needs for the images of cases with one strength."""
    given = [case.given for case in cases]
    width, height = cases[0].wanted.size
    if task == "control":
        return {"control": {CONTROL_KIND: given} if controlled else None, "height": height, "width": width}
    return {"image": given} | ({"restore": cases[0].strength} if task == "restore" else {})


def _means(cases: Sequence[Case], values: Values) -> dict[str, dict[str, dict[str, float]]]:
    """For all cases and for each kind, by measure: mean, low, high (bootstrap, 95 %) and num_images."""
    return {
        kind: {
            name: bootstrap_mean(
                [value for case, value in zip(cases, some, strict=True) if kind in ("all", case.kind)]
            )
            for name, some in values.items()
        }
        for kind in ("all", *dict.fromkeys(case.kind for case in cases))
    }


def _differences(model: Values, simpler: Values) -> Values:
    """How much better the model is on each image, by measure."""
    sign = {"lpips": -1}  # lower is better
    return {
        name: [sign.get(name, 1) * (a - b) for a, b in zip(model[name], simpler[name], strict=True)]
        for name in model
    }


def _as_captioned(cases: Sequence[Case], images: Images) -> dict[str, float]:
    right = [
        all(agrees(case.scene, judge(image)).values())
        for case, image in zip(cases, images, strict=True)
        if case.scene is not None
    ]
    return Share(sum(right), len(right)).to_dict()


def contact_sheet(
    cases: Sequence[Case], images: Images, measure: Callable[[Sequence[Case], Images], Values]
) -> Image.Image:
    """The first cases, two a row: the image given with its kind, the one made with its value, the one wanted."""
    shown, captions = [], []
    for case, image in list(zip(cases, images, strict=True))[:NUM_SHOWN]:
        name, (value,) = next(iter(measure([case], [image]).items()))
        shown += [
            each.resize((SHOWN_PX, SHOWN_PX)) for each in (case.given.convert("RGB"), image, case.wanted)
        ]
        captions += [f"{case.kind} {case.strength or ''}", f"{name} {value:.2f}", case.prompt]
    return image_grid(shown, num_columns=6, captions=captions)
