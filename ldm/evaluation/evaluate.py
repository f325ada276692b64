"""All numbers of an evaluation, from the features that were kept."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ldm.errors import warn
from ldm.evaluation.clip_score import clip_score
from ldm.evaluation.evaluation_job import CHUNK, EvaluationJob, Features, one_thread
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.kernel_distance import (
    Kernel,
    cubic_kernel,
    gaussian_kernel,
    kernel_distance,
    quadratic_kernel,
)
from ldm.evaluation.measurement import Measurement
from ldm.evaluation.neighbours import NUM_NEIGHBOURS, overlap

SQUARED = "all theta that the estimate does not exclude (score interval)"
BINOMIAL = "exact binomial, the other set held fixed"
STUDENT = "Student's t over images"
LEAST_IMAGES = 2 * NUM_NEIGHBOURS
"""With fewer images on either side there is no distance."""


def measure(
    job: EvaluationJob, features: Features, say: Callable[[str], None] = lambda text: None
) -> list[Measurement]:
    """Every metric that the job's images allow, in a fixed order.

    Args:
        say: called with what is being computed.

    Warns:
        LdmWarning: there are too few images for a distance.
    """
    if job.sample_ids and not _has_enough(job):
        warn(f"fewer than {LEAST_IMAGES} images on either side: no distances are measured")
    with one_thread(torch.device("cpu")):
        found = list(_distances(job, features, say)) if _has_enough(job) else []
        found += _diversity(job, features)
        if "clip_images" in features.generated:
            found.append(_clip(job, features))
        return found


def _has_enough(job: EvaluationJob) -> bool:
    return min(len(job.prompts), len(job.sample_ids)) >= LEAST_IMAGES


def shared_protocol(job: EvaluationJob, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What every number of an evaluation depends on besides the model and its settings."""
    return {
        "prompts": plan["prompts"],
        "seeds": f"image i has the seed {job.seed} + i",
        "size": plan["size"],
        "batch": CHUNK,
    }


def _distances(job: EvaluationJob, features: Features, say: Callable[[str], None]) -> Iterator[Measurement]:
    """The distances between the generated and the reference images, and how far they overlap."""
    x, y = (each["features"].double() for each in (features.generated, features.reference))
    protocol = shared_protocol(job, features.plan) | {
        "extractor": features.plan["features"],
        "reference": features.plan["reference"],
        "reference_resize": "Lanczos with antialias to cover the size, then centre crop",
    }
    measured = partial(Measurement, num_images=len(x), num_reference=len(y))
    units = [functional.normalize(each, dim=1) for each in (x, y)]
    kernels: dict[str, tuple[tuple[Tensor, Tensor], Kernel, float, str]] = {
        "kid": ((x, y), cubic_kernel, 1.0, "(x.y / d + 1)^3"),
        "cmmd": ((units[0], units[1]), gaussian_kernel, 1000.0, "1000 exp(-|x - y|^2 / 200), unit features"),
        "second_moment": ((units[0], units[1]), quadratic_kernel, 1.0, "(x.y)^2, unit features"),
    }
    for name, (sets, kernel, factor, formula) in kernels.items():
        say(f"computing {name}")
        estimate = kernel_distance(*sets, kernel).interval().scaled(factor)
        yield measured(name, estimate, "lower", interval=SQUARED, protocol={**protocol, "kernel": formula})
    say("computing fid")
    fid = frechet_distance(x, y)
    details = {"fid_of_these_images": fid.finite, "slope": fid.slope}
    yield measured(
        "fid",
        fid.estimate,
        "lower",
        interval=SQUARED,
        protocol={**protocol, "extrapolated": "to infinitely many images, by a line in 1/N"},
        details=details,
    )
    say("computing the overlap")
    found = overlap(x, y)
    neighbours = {**protocol, "neighbours": NUM_NEIGHBOURS}
    for name in ("precision", "recall", "density", "coverage"):
        interval = STUDENT if name == "density" else BINOMIAL
        yield measured(name, getattr(found, name), "higher", interval=interval, protocol=neighbours)


def _diversity(job: EvaluationJob, features: Features) -> Iterator[Measurement]:
    """How alike pairs of generated images are, and pairs of reference images for comparison."""
    for name in ("pair_ssim", "pair_lpips"):
        values = features.generated.get(name, torch.empty(0))
        if len(values) == 0 or bool(values.isnan().any()):
            continue
        details = {}
        if len(of_reference := features.reference.get(name, torch.empty(0))):
            details["of_reference_pairs"] = float(of_reference.double().mean())
        protocol = {**shared_protocol(job, features.plan), "pairs": "images 1 and 2, 3 and 4, ..."}
        if name == "pair_lpips":
            protocol["extractor"] = features.plan["lpips"]
        yield Measurement(
            name,
            mean_interval(values),
            "",
            num_images=len(job.prompts),
            num_reference=None,
            interval="Student's t over pairs, each image in one pair",
            protocol=protocol,
            details=details,
        )


def _clip(job: EvaluationJob, features: Features) -> Measurement:
    return Measurement(
        "clip_score",
        clip_score(features.generated["clip_images"], features.generated["clip_texts"]),
        "higher",
        num_images=len(job.prompts),
        num_reference=None,
        interval=STUDENT,
        protocol={**shared_protocol(job, features.plan), "pair": features.plan["clip"]},
    )
