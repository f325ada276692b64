"""The data report as one HTML page: thumbnails embedded, nothing loaded from elsewhere, no script.

`page.html.jinja` is the page; this file chooses what it shows.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from ldm.data.report.contents import CaptionReport, DataReport, SampleOutcome
from ldm.data.sample import ImageSource, Sample
from ldm.errors import UserError
from ldm.io.images import open_image

MAX_THUMBNAILS = 200
"""How many samples the page shows with images."""
MAX_ROWS = 500
"""How many lines a list has: refusals, truncated captions, notes."""

_MAX_GROUPS, _MAX_IN_GROUP, _NUM_BINS = 12, 6, 8
_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Thumbnail:
    """A small image inside the page.

    Attributes:
        name: of a further image of the sample; empty for its main image.
        jpeg: the image, base64.
        width: in pixels; so is `height`.
        crop: the CSS box of the first crop; empty where the whole image is used.
        fault: why there is no image.
    """

    name: str
    jpeg: str = ""
    width: int = 0
    height: int = 0
    crop: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Figure:
    """A used sample: its images and what is said below them."""

    sample_id: str
    size: str
    num_tokens: int | None
    caption: str
    images: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class Group:
    """Duplicates that are shown, and how many more the group has."""

    figures: list[Figure]
    num_more: int


def report_page(report: DataReport, samples: Sequence[Sample]) -> str:
    """The page as HTML text; all text that comes from the data is escaped.

    Args:
        samples: where the images are read from; one that is gone is shown without a thumbnail.
    """
    figures = _Figures(report, samples)
    # in the order of the page, for they share an allowance of thumbnails
    exact, near = figures.groups(report.exact_duplicates), figures.groups(report.near_duplicates)
    bins = length_bins(report.captions)
    return _template().render(
        report=report,
        totals=_totals(report),
        refused=[outcome for outcome in report.samples if not outcome.used],
        length_bins={_span(*bounds): count for bounds, count in bins.items()},
        too_long=[_span(*bounds) for bounds in bins if bounds[0] > _limit(report.captions)],
        exact=exact,
        near=near,
        gallery=figures.gallery(),
        num_used=len(figures.shown_ids),
        max_rows=MAX_ROWS,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


class _Figures:
    """The figures of used samples, which share one allowance of thumbnails."""

    def __init__(self, report: DataReport, samples: Sequence[Sample]) -> None:
        self.samples = {sample.sample_id: sample for sample in samples}
        self.outcomes = {outcome.sample_id: outcome for outcome in report.samples if outcome.used}
        self.shown_ids = [sample_id for sample_id in self.outcomes if sample_id in self.samples]
        self.num_left = MAX_THUMBNAILS

    def groups(self, groups: Sequence[Sequence[str]]) -> list[Group]:
        """The first groups of duplicates."""
        return [
            Group(
                [self._figure(sample_id) for sample_id in group[:_MAX_IN_GROUP]], len(group) - _MAX_IN_GROUP
            )
            for group in groups[:_MAX_GROUPS]
        ]

    def gallery(self) -> list[Figure]:
        """Used samples, evenly spaced from first to last, as many as there are thumbnails left."""
        num_shown = min(len(self.shown_ids), self.num_left)
        indices = (index * len(self.shown_ids) // num_shown for index in range(num_shown))
        return [self._figure(self.shown_ids[index]) for index in indices]

    def _figure(self, sample_id: str) -> Figure:
        outcome, sample = self.outcomes[sample_id], self.samples.get(sample_id)
        bucket = f", bucket {outcome.bucket}" if outcome.bucket else ""
        size = f"{outcome.width} x {outcome.height}{bucket}".replace(" x ", "\u00a0x\u00a0")
        images: tuple[Thumbnail, ...] = ()
        if sample is not None and self.num_left > 0:
            self.num_left -= 1
            images = tuple(_thumbnails(sample, _crop(outcome)))
        caption = sample.text if sample else ""
        return Figure(sample_id, size, outcome.num_tokens, caption, images)


def _thumbnails(sample: Sample, crop: str) -> Iterator[Thumbnail]:
    """The main image, then the further ones, all with the same crop."""
    yield _thumbnail("", sample.image, crop)
    for name, source in sample.images.items():
        yield _thumbnail(name, source, crop)


def _thumbnail(name: str, source: ImageSource, crop: str) -> Thumbnail:
    try:
        image = open_image(source.read(), name=source.name)
    except UserError as error:
        return Thumbnail(name, fault=str(error))
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75, optimize=True)
    jpeg = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(name, jpeg, image.width, image.height, crop)


def _crop(outcome: SampleOutcome) -> str:
    """The first crop as a CSS box, unless it is the whole image."""
    if not outcome.crops or outcome.bucket is None or outcome.scaled is None:
        return ""
    if outcome.bucket == outcome.scaled:
        return ""
    width, height = (int(side) for side in outcome.bucket.split(" x "))
    full_width, full_height = (int(side) for side in outcome.scaled.split(" x "))
    top, left = outcome.crops[0]
    box = {
        "left": left / full_width,
        "top": top / full_height,
        "width": width / full_width,
        "height": height / full_height,
    }
    return ";".join(f"{side}:{100 * share:.2f}%" for side, share in box.items())


def _totals(report: DataReport) -> dict[str, int]:
    return {
        "found": report.num_found,
        "used": report.num_used,
        "refused": report.num_refused,
        **({"of the used are held out": report.num_held_out} if report.num_held_out else {}),
        **({"of the used are repeats": report.num_repeats} if report.num_repeats else {}),
        **(
            {"captions that are too long": len(report.captions.truncated)}
            if report.captions.context_length is not None
            else {}
        ),
    }


def length_bins(captions: CaptionReport) -> dict[tuple[int, int], int]:
    """The number of captions by (shortest, longest) length of a bin; one edge is the text encoder's context."""
    longest = max((length for length, _ in captions.lengths), default=0)
    limit = _limit(captions)
    step = max(1, -(-min(limit, longest) // _NUM_BINS))
    bins: dict[tuple[int, int], int] = {}
    for length, count in captions.lengths:
        base = limit if length > limit else 0
        first = base + max(0, length - base - 1) // step * step + 1
        last = min(first + step - 1, longest if base else limit)
        bins[first, last] = bins.get((first, last), 0) + count
    return bins


def _limit(captions: CaptionReport) -> int:
    """How long a caption may be; without a tokenizer, as long as the longest."""
    return captions.context_length or max((length for length, _ in captions.lengths), default=0)


def _span(first: int, last: int) -> str:
    return f"{first} to {last}" if last > first else str(first)
