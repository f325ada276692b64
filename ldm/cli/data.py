"""`ldm data`: check captioned images before training, and prune the cache."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ldm.cli.printer import Printer, reporting
from ldm.errors import UserError
from ldm.io.messages import count

if TYPE_CHECKING:
    from ldm.data.buckets import Placement
    from ldm.data.cache.prune import Pruned
    from ldm.data.sample import ImageInfo, Refusal, Sample
    from ldm.data.sources.reading import Reading

BUCKET_MULTIPLE = 64
"""The sides of buckets are multiples of this if no model is named. Stable Diffusion needs it."""

data_app = typer.Typer(help="Check captioned images before training; prune the cache.", rich_markup_mode=None)

DataPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A folder of images with metadata.jsonl, .csv or .parquet (file_name, text) or with .txt files beside "
        "them; a parquet file or WebDataset tar, or a folder of these; or a dataset's name on the Hub.",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write data_report.json, which lists what happened to each sample, and data_report.html, a page with "
        "images.",
    ),
]
Height = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Check whether images fit this size.  [default: the width]"),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Check whether images fit this size.  [default: the height]"),
]
Buckets = Annotated[
    bool,
    typer.Option("--buckets", help="Keep aspect ratios: height times width is then a pixel budget."),
]
Upscale = Annotated[
    bool, typer.Option("--upscale", help="Enlarge images that are too small; otherwise they cannot be used.")
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What PATH is: folder, parquet, webdataset, or datasets for a name on the Hub; auto detects it.",
    ),
]
CaptionColumn = Annotated[str, typer.Option(metavar="NAME", help="The column with the captions.")]
ImageColumn = Annotated[str, typer.Option(metavar="NAME", help="The column with the images.")]
Split = Annotated[
    str, typer.Option(metavar="NAME", help="The split, if a dataset or parquet files have several.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER|HUB_ID",
        help="Count caption tokens with this model's tokenizer, and list captions longer than its context.",
    ),
]
MissingCaptions = Annotated[
    Literal["error", "empty", "filename", "folder"],
    typer.Option(
        help="What to do with images that have no caption, as captions.missing in a configuration: refuse them, or "
        "give them an empty caption, or one made from the name of the file or its folder.",
    ),
]
FixList = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv",
        help="Write a table with a line for each file or row that cannot be used: what to do, its name, and what is "
        "wrong with it.",
    ),
]
RefuseReserved = Annotated[
    bool,
    typer.Option(
        "--refuse-reserved",
        help="Count images whose files reserve AI training among those that cannot be used, as data.reserved=leave_out "
        "does in a configuration; otherwise they are listed only.",
    ),
]
Rehash = Annotated[
    bool,
    typer.Option(
        "--rehash", help="Reread every image, including those that an earlier check or run has read."
    ),
]
OlderThanDays = Annotated[
    float | None, typer.Option(min=0, metavar="N", help="Remove files not used for N days.")
]
MaxGb = Annotated[
    float | None,
    typer.Option(min=0, metavar="X", help="Remove the least recently used files until X gigabytes are left."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The cache to prune, for runs that set cache.folder.  [default: $LDM_CACHE_DIR, else open-ldm in the "
        "user's cache folder]",
    ),
]


@data_app.callback()
def data() -> None:
    """Check captioned images before training; prune the cache."""


@data_app.command()
@reporting
def check(
    path: DataPath,
    report: Report = None,
    height: Height = None,
    width: Width = None,
    buckets: Buckets = False,
    upscale: Upscale = False,
    kind: Kind = "auto",
    caption_column: CaptionColumn = "text",
    image_column: ImageColumn = "image",
    split: Split = "train",
    model: Model = None,
    missing_captions: MissingCaptions = "error",
    fix_list: FixList = None,
    refuse_reserved: RefuseReserved = False,
    rehash: Rehash = False,
    *,
    printer: Printer,
) -> None:
    """Read images and captions as training would, and summarise them.

    Every image is decoded, and everything that cannot be used is listed. The exit code is 2 if there is any. Nothing is
    written to PATH. With --json the output has the format of data_report.json.
    """
    from ldm.cli.autoconfig import describe_base, survey_reading
    from ldm.cli.data_text import refusal_lines, summary_lines
    from ldm.config import validate
    from ldm.data.report.fix_list import write_fix_list
    from ldm.data.report.report import check_report_folder, make_report, write_report
    from ldm.data.sources.reading import SourceSettings, ignored_files, read_sources

    size = _size(height, width, buckets)
    _refuse_places(report, fix_list, path)
    if report is not None:
        check_report_folder(report)
    base = describe_base(model) if model else None
    columns = {"caption_column": caption_column, "image_column": image_column, "split": split}
    source = validate(SourceSettings, {"path": path, "kind": kind, **columns}, "ldm data check")
    if base and size:
        _refuse_multiple(size, base.multiple, base.name)
    reading = read_sources([source], missing=missing_captions, tolerant=True)
    facts = survey_reading(reading, rehash=rehash, quiet=printer.quiet)
    reading, facts = _with_rights(reading, facts, refuse=refuse_reserved)
    multiple = base.multiple if base else BUCKET_MULTIPLE
    placements = _place(facts, size, multiple, buckets, upscale) if size else None
    tokens = (base.count_tokens, base.context_length) if base else (None, None)
    found = make_report(reading, facts, placements, *tokens)
    for line in refusal_lines(found, reading):
        typer.echo(line, err=True)
    lines = summary_lines(path, found, reading, ignored_files(source))
    printer.result(asdict(found) if printer.as_json else {}, *lines)
    if report is not None:
        _, page = write_report(found, report, reading.samples)
        printer.lines(f"report: {page}")
    if fix_list is not None:
        write_fix_list(fix_list, reading, facts, placements or {})
        printer.lines(f"what to do: {fix_list}")
    if found.num_refused:
        what = f"{found.num_refused} of {count(found.num_found, 'image')} cannot be used"
        raise UserError(what, _way_on(found.num_refused, fix_list))


def _with_rights(
    reading: "Reading", facts: "Mapping[str, ImageInfo | Refusal]", *, refuse: bool
) -> "tuple[Reading, dict[str, ImageInfo | Refusal]]":
    """The samples and what is known of them, with what their files say about rights."""
    from dataclasses import replace

    from ldm.data.reserved import reservation, with_rights

    samples: list[Sample] = []
    known: dict[str, ImageInfo | Refusal] = {}
    for sample in reading.samples:
        facts_of = facts[sample.sample_id]
        dressed, found = with_rights(sample, facts_of)
        samples.append(dressed)
        known[sample.sample_id] = (reservation(sample, facts_of) if refuse else None) or found
    return replace(reading, samples=samples), known


def _way_on(num_refused: int, fix_list: Path | None) -> str:
    if fix_list is not None:
        return f"see {fix_list}"
    return "fix or remove them" + ("; --fix-list FILE.csv writes what to do" if num_refused > 1 else "")


@data_app.command()
@reporting
def prune(
    older_than_days: OlderThanDays = None,
    max_gb: MaxGb = None,
    dry_run: DryRun = False,
    folder: CacheFolder = None,
    *,
    printer: Printer,
) -> None:
    """Remove files from the cache.

    The cache contains encoded images and captions, and networks converted for OpenVINO. Removed files are created
    again when they are needed. Damaged files and leftovers of killed runs are removed too.
    """
    from ldm.data.cache.cache_folder import cache_root
    from ldm.data.cache.prune import prune as prune_cache

    root = folder or cache_root()
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--folder {folder} is not a folder", "name a cache, or leave the option out for the default one"
        )
    if older_than_days is None and max_gb is None:
        limit = "damaged files and leftovers of killed runs"
        printer.note(f"note: without --older-than-days or --max-gb only {limit} are removed")
    max_bytes = None if max_gb is None else int(max_gb * 1e9)
    gone = prune_cache(root, older_than_days=older_than_days, max_bytes=max_bytes, dry_run=dry_run)
    facts = {"cache": str(root), "dry_run": dry_run, **asdict(gone), "removed_bytes": gone.removed_bytes}
    printer.result(facts, *_prune_lines(root, gone, dry_run))


def _prune_lines(root: Path, gone: "Pruned", dry_run: bool) -> Iterator[str]:
    for file in gone.removed:
        yield (
            f"{file.path}: {file.size_bytes / 1e6:.1f} MB, unused for {count(round(file.unused_days), 'day')}"
        )
    verb = "would be removed" if dry_run else "removed"
    kept = f"{gone.kept_bytes / 1e9:.3f} GB {'would stay' if dry_run else 'left'}"
    yield f"{root}: {count(len(gone.removed), 'file')}, {gone.removed_bytes / 1e9:.3f} GB {verb}, {kept}"


def _refuse_places(report: Path | None, fix_list: Path | None, path: str) -> None:
    """Refuse places for the report and the list of fixes that are inside the data, or are something else already."""
    from ldm.data.sources.scan import is_file, refuse_inside, status_of

    if report is not None:
        refuse_inside(f"--report {report}", report, Path(path))
        if is_file(report):
            raise UserError(f"--report {report} is a file", "name a folder")
    if fix_list is not None:
        refuse_inside(f"--fix-list {fix_list}", fix_list, Path(path), choose="a file")
        if status_of(fix_list) is not None:
            raise UserError(f"--fix-list {fix_list} exists already", "name another file, or move it away")


def _size(height: int | None, width: int | None, buckets: bool) -> tuple[int, int] | None:
    """(height, width) in pixels, or None if no size was given."""
    if height is None and width is None:
        if buckets:
            raise UserError("--buckets without a size", "give --height or --width, for example --height 512")
        return None
    return height or width or 0, width or height or 0


def _refuse_multiple(size: tuple[int, int], multiple: int, model: str) -> None:
    """Refuse a size that a run of the model would refuse."""
    for name, value in zip(("height", "width"), size, strict=True):
        if value % multiple:
            raise UserError(f"--{name} {value}", f"choose a multiple of {multiple} for {model}")


def _place(
    facts: "Mapping[str, ImageInfo | Refusal]",
    size: tuple[int, int],
    multiple: int,
    buckets: bool,
    upscale: bool,
) -> "dict[str, Placement | str]":
    from ldm.data.buckets import BucketSettings, place
    from ldm.data.sample import ImageInfo

    settings = BucketSettings(buckets=buckets, upscale=upscale)
    height, width = size
    return {
        sample_id: place(
            found.width,
            found.height,
            height=height,
            width=width,
            multiple=multiple,
            settings=settings,
            seed=0,
            sample_id=sample_id,
        )
        for sample_id, found in facts.items()
        if isinstance(found, ImageInfo)
    }
