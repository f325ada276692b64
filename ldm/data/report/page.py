"""The data report as one HTML page: thumbnails inside it, nothing loaded from elsewhere, no script."""

import base64
import io
from collections.abc import Container, Iterator, Mapping, Sequence
from html import escape

from PIL import Image

from ldm.data.report.contents import CaptionReport, DataReport, SampleFate
from ldm.data.sample import Sample
from ldm.errors import UserError

MAX_THUMBNAILS = 200
"""How many images the page shows."""
MAX_ROWS = 500
"""How many lines a list has: refusals, truncated captions, notes."""

_GROUPS_SHOWN, _OF_A_GROUP, _BARS_SHOWN, _NUM_BINS = 12, 6, 64, 8
_SIZES_SHOWN, _ROWS_OPEN = 12, 20
_THUMBNAIL_PX = 160
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Data report</title><style>
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5d636e; --paper: #fcfcfa; --line: #dcdedf;
  --bar: #3d7ea6; --bad: #b3402e; --card: #f1f2f0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e4; --soft: #9aa1ab; --paper: #16181b; --line: #33373c;
  --bar: #6fb0d6; --bad: #ef8a75; --card: #202327; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft, figcaption { color: var(--soft); } .bad { color: var(--bad); }
.totals { display: flex; flex-wrap: wrap; gap: .5rem 2.25rem; margin: 0; }
.totals dt { color: var(--soft); font-size: .85rem; } .totals dd { margin: 0; font-size: 1.6rem; line-height: 1.2; }
.bar { display: grid; grid-template-columns: clamp(5.5rem, 28%, 13rem) 1fr 3.5rem; gap: .75rem; align-items: center; }
.bar i { display: block; height: .8rem; min-width: 2px; background: var(--bar); border-radius: 2px; }
.bar.over i { background: var(--bad); } .bar b, dd { font-weight: 500; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: .35rem 0; } h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
ul { list-style: none; margin: 0; padding: 0; } li { padding: .35rem 0; border-top: 1px solid var(--line); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem .75rem; }
.group { border-top: 1px solid var(--line); padding: .75rem 0; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .8rem; line-height: 1.35; margin-top: .3rem; }
figcaption b { color: var(--ink); font-weight: 500; } bdi { white-space: pre-wrap; }
.frame { position: relative; overflow: hidden; width: fit-content; background: var(--card); line-height: 0; }
.frame img { max-width: 100%; height: auto; }
.crop { position: absolute; border: 1px solid #fff; box-shadow: 0 0 0 999px rgb(0 0 0 / 55%); }
</style></head><body><main>
"""


def report_page(report: DataReport, samples: Sequence[Sample]) -> str:
    """The page as HTML text; every word that comes from the data is escaped.

    Args:
        samples: where the images are read from; one that is gone is shown without a thumbnail.
    """
    page = _Page(report, samples)
    parts = [
        _totals(report),
        _refused(report),
        _section(
            "Buckets",
            _bars(report.buckets),
            "Width x height of what is used, held out or not, and how many samples.",
        ),
        _section(
            "Image sizes", _bars(report.sizes, num_shown=_SIZES_SHOWN), "Width x height of the images used."
        ),
        _captions(report.captions),
        *page.duplicates(),
        _licences(report),
        _notes(report.notes),
        page.gallery(),
    ]
    return _HEAD + "\n".join(part for part in parts if part) + "\n</main></body></html>\n"


class _Page:
    """The parts with images, which share one allowance of thumbnails."""

    def __init__(self, report: DataReport, samples: Sequence[Sample]) -> None:
        self.report = report
        self.samples = {sample.sample_id: sample for sample in samples}
        self.fates = {fate.sample_id: fate for fate in report.samples if fate.used}
        self.num_left = MAX_THUMBNAILS

    def duplicates(self) -> Iterator[str]:
        """The groups of equal and of similar images."""
        same = "The same bytes: such an image counts for several in every epoch."
        yield self._groups("Exact duplicates", self.report.exact_duplicates, same)
        alike = "They look alike, by a hash of the picture; judge by eye."
        yield self._groups("Near duplicates", self.report.near_duplicates, alike)

    def _groups(self, title: str, groups: list[list[str]], intro: str) -> str:
        if not groups:
            return f"<h2>{title}</h2><p>None.</p>"
        shown = [self._group(group) for group in groups[:_GROUPS_SHOWN]]
        num_samples = sum(map(len, groups))
        intro = f"{_count(len(groups), 'group')}, {_count(num_samples, 'sample')}. {intro}"
        return _section(title, "".join(shown) + _rest(len(groups) - len(shown), "group"), intro)

    def _group(self, group: list[str]) -> str:
        figures = "".join(self._figure(sample_id) for sample_id in group[:_OF_A_GROUP])
        rest = _rest(len(group) - _OF_A_GROUP, "sample")
        return f'<div class="group"><div class="grid">{figures}</div>{rest}</div>'

    def gallery(self) -> str:
        """Used samples, evenly from first to last, each with what of it is trained on."""
        ids = [sample_id for sample_id in self.fates if sample_id in self.samples]
        num_shown = min(len(ids), self.num_left)
        shown = [ids[index * len(ids) // num_shown] for index in range(num_shown)]
        figures = "".join(self._figure(sample_id) for sample_id in shown)
        if not figures:
            return ""
        intro = "The bright part is trained on." if self.report.buckets else ""
        rest = _rest(len(ids) - num_shown, "used sample")
        return _section("Samples", f'<div class="grid">{figures}</div>{rest}', intro)

    def _figure(self, sample_id: str) -> str:
        fate, sample = self.fates[sample_id], self.samples.get(sample_id)
        bucket = f", bucket {fate.bucket}" if fate.bucket else ""
        size = f"{fate.width} x {fate.height}{bucket}".replace(" x ", "&nbsp;x&nbsp;")
        tokens = f", {fate.num_tokens} tokens" if fate.num_tokens is not None else ""
        caption = sample.text if sample else ""
        words = f"<b>{_text(sample_id)}</b><br>{size}{tokens}<br>{_text(caption, longest=160)}"
        return f"<figure>{self._frame(fate, sample)}<figcaption>{words}</figcaption></figure>"

    def _frame(self, fate: SampleFate, sample: Sample | None) -> str:
        if sample is None or self.num_left <= 0:
            return ""
        self.num_left -= 1
        try:
            image = sample.open()
        except UserError as error:
            return f'<p class="bad">{_text(str(error))}</p>'
        return f'<div class="frame">{thumbnail(image)}{_crop(fate)}</div>'


def thumbnail(image: Image.Image) -> str:
    """An `img` element that holds the picture itself, as a small JPEG."""
    small = image.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75, optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="" {size} src="data:image/jpeg;base64,{data}">'


def _crop(fate: SampleFate) -> str:
    """A frame around the first crop, unless it is the whole image."""
    if not fate.crops or fate.bucket is None or fate.scaled is None or fate.bucket == fate.scaled:
        return ""
    width, height = (int(side) for side in fate.bucket.split(" x "))
    full_width, full_height = (int(side) for side in fate.scaled.split(" x "))
    top, left = fate.crops[0]
    box = {
        "left": left / full_width,
        "top": top / full_height,
        "width": width / full_width,
        "height": height / full_height,
    }
    style = ";".join(f"{side}:{100 * share:.2f}%" for side, share in box.items())
    return f'<span class="crop" style="{style}"></span>'


def _totals(report: DataReport) -> str:
    cut = len(report.captions.truncated)
    totals = {
        "found": report.num_found,
        "used": report.num_used,
        "refused": report.num_refused,
        **({"of the used are held out": report.num_held_out} if report.num_held_out else {}),
        **({"of the used are repeats": report.num_repeats} if report.num_repeats else {}),
        **({"captions that do not fit": cut} if report.captions.context_length is not None else {}),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in totals.items())
    return f'<h1>Data report</h1><dl class="totals">{cells}</dl>'


def _refused(report: DataReport) -> str:
    refused = [fate for fate in report.samples if not fate.used]
    rows = [
        f'<b>{_text(fate.sample_id)}</b><br><span class="bad">{_text(fate.reason)}</span>' for fate in refused
    ]
    return _section("Refused", _list(rows)) if rows else ""


def _captions(captions: CaptionReport) -> str:
    limit = captions.context_length
    intro = f"{_count(captions.num_captions, 'caption')}, {captions.num_different:,} different."
    if limit is not None:
        intro += f" {limit} tokens fit into what the text encoder reads, start and end included."
    elif captions.unit == "letters":
        intro += " Counted in letters; name a model to count the tokens of its text encoder."
    rows = [
        f"<b>{_text(one.sample_id)}</b> <span class=soft>{one.num_tokens} tokens</span><br>"
        + _text(one.caption, longest=600)
        for one in captions.truncated
    ]
    cut = f'<h2 class="bad">Captions that do not fit</h2>{_list(rows)}' if rows else ""
    return _section(f"Caption lengths in {captions.unit}", _length_bars(captions), intro) + cut


def _length_bars(captions: CaptionReport) -> str:
    """Caption lengths in bins, one edge at the context."""
    longest = max((length for length, _ in captions.lengths), default=0)
    limit = captions.context_length or longest
    step = max(1, -(-min(limit, longest) // _NUM_BINS))
    bins: dict[tuple[int, int], int] = {}
    for length, count in captions.lengths:
        base = limit if length > limit else 0
        first = base + max(0, length - base - 1) // step * step + 1
        last = min(first + step - 1, longest if base else limit)
        bins[first, last] = bins.get((first, last), 0) + count
    names = {f"{first} to {last}" if last > first else str(first): first > limit for first, last in bins}
    over = {name for name, is_over in names.items() if is_over}
    return _bars(dict(zip(names, bins.values(), strict=True)), over)


def _licences(report: DataReport) -> str:
    licences = report.licences
    if not licences.fields:
        return "<h2>Licences</h2><p>The data names no licence, author or attribution.</p>"
    bars = "".join(f"<h3>{_text(key)}</h3>{_bars(values)}" for key, values in licences.fields.items())
    return _section("Licences", bars, f"{_count(licences.num_without, 'used sample')} without a licence.")


def _notes(notes: Mapping[str, Sequence[str]]) -> str:
    rows = []
    for note, ids in notes.items():
        shown = ", ".join(_text(sample_id) for sample_id in ids[:20]) + (", ..." if len(ids) > 20 else "")
        rows.append(f"{_text(note)}: {_count(len(ids), 'sample')} <span class=soft>{shown}</span>")
    return _section("Notes", _list(rows)) if rows else ""


def _section(title: str, content: str, intro: str = "") -> str:
    return f"<h2>{title}</h2>{f'<p class=soft>{intro}</p>' if intro else ''}{content}" if content else ""


def _bars(counts: Mapping[str, int], over: Container[str] = (), num_shown: int = _BARS_SHOWN) -> str:
    """A row a value, with a bar as long as its count."""
    largest = max(counts.values(), default=1)
    rows = [
        f'<div class="bar{" over" if name in over else ""}"><span>{_text(name)}</span>'
        f'<i style="width:{100 * count / largest:.1f}%"></i><b>{count:,}</b></div>'
        for name, count in list(counts.items())[:num_shown]
    ]
    return "".join(rows) + _rest(len(counts) - num_shown, "value")


def _list(rows: Sequence[str]) -> str:
    """The rows one below the other; a long list is folded away until it is asked for."""
    items = "".join(f"<li>{row}</li>" for row in rows[:MAX_ROWS])
    content = f"<ul>{items}</ul>{_rest(len(rows) - MAX_ROWS, 'line')}"
    if len(rows) <= _ROWS_OPEN:
        return content
    return f"<details><summary>{_count(len(rows), 'line')}</summary>{content}</details>"


def _rest(count: int, noun: str) -> str:
    return (
        f'<p class="soft">and {_count(count, f"further {noun}")}, in data_report.json</p>'
        if count > 0
        else ""
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(text: str, longest: int = 2000) -> str:
    """Text from the data, escaped and of its own writing direction."""
    return f"<bdi>{escape(text[:longest] + (' ...' if len(text) > longest else ''))}</bdi>"
