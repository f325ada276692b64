"""Results as HTML pages: images embedded, nothing loaded from elsewhere, no script."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ldm.evaluation.evaluation_job import Features
from ldm.io.files import write_bytes

MAX_SHOWN = 32
THUMBNAIL_PX = 128

WORDS = {
    "kid": "Kernel Inception distance of the features. 0 for equal distributions.",
    "cmmd": "Distance of the mean directions of the features; nearly blind to spread.",
    "second_moment": "Distance of the features' second moments: sees spread and collapse, which CMMD does not.",
    "fid": "Frechet distance, extrapolated to infinitely many images. 0 for equal distributions.",
    "precision": "Share of generated images that lie near a reference image.",
    "recall": "Share of reference images that lie near a generated image.",
    "density": "How crowded the reference is where generated images lie. 1 for equal distributions.",
    "coverage": "Share of reference images with a generated image in their neighbourhood.",
    "pair_ssim": "Mean structural similarity of pairs of generated images. 1 would be one image again and again.",
    "pair_lpips": "Mean perceptual distance of pairs of generated images. 0 would be one image again and again.",
    "clip_score": "How well images fit their prompts, in the eyes of this pair of encoders.",
}
"""What each number says, in a sentence."""


@dataclass(frozen=True)
class Shown:
    """A small image of a page with the lines below it."""

    jpeg: str
    width: int
    height: int
    lines: tuple[str, ...] = ()


def shown(image: Image.Image, *lines: str) -> Shown:
    """An image, shrunk to a thumbnail."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return Shown(base64.b64encode(file.getvalue()).decode("ascii"), small.width, small.height, lines)


def render(template: str, **values: Any) -> str:
    """A page from one of this folder's templates; all text is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """It keeps the templates that it has compiled."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, facts: Mapping[str, Any], features: Features) -> Path:
    """Write the page of an evaluation; returns its path."""
    rows = [{**each, "words": WORDS[each["name"]], "bar": _bar(each)} for each in facts["measurements"]]
    page = render(
        "evaluation.html.jinja",
        facts=facts,
        rows=rows,
        generated=_thumbnails(features.generated),
        reference=_thumbnails(features.reference),
    )
    write_bytes(path, page.encode())
    return path


def _bar(measurement: Mapping[str, Any]) -> dict[str, float] | None:
    """Where the interval lies on a line from 0 to 1, for numbers that are shares."""
    if measurement["name"] not in ("precision", "recall", "coverage") or measurement["low"] is None:
        return None
    return {"left": 100 * measurement["low"], "width": 100 * (measurement["high"] - measurement["low"])}


def _thumbnails(tensors: Mapping[str, Any]) -> Sequence[Shown]:
    if "thumbnails" not in tensors:
        return []
    return [shown(Image.fromarray(each.numpy())) for each in tensors["thumbnails"][:MAX_SHOWN]]
