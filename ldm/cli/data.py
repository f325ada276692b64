"""`ldm data`: look at captioned images before they are trained on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.data.sample import Sample

NUM_SHOWN = 3
"""How many of the longest captions, and of each kind of note, are shown."""

data_app = typer.Typer(help="Look at captioned images before they are trained on.", rich_markup_mode=None)


@data_app.callback()
def data() -> None:
    """Look at captioned images before they are trained on."""


@data_app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Images with metadata.jsonl, .csv or .parquet (file_name, text), or .txt files beside them.",
        ),
    ],
) -> None:
    """Read a folder as training would and say what is in it.

    Every image is opened. Exit code 2 when an image or a caption cannot be used; nothing is written.
    """
    from ldm.data.folder import read_folder

    samples = read_folder(path)
    sizes, notes, faults = _open_all(samples)
    for fault in faults:
        typer.echo(f"error: {fault}", err=True)
    typer.echo("\n".join(_report(path, samples, sizes, notes)))
    if faults:
        raise UserError(f"{len(faults)} of {len(samples)} images cannot be used", "mend or remove them")


def _open_all(samples: "Sequence[Sample]") -> tuple[list[tuple[int, int]], dict[str, list[str]], list[str]]:
    """Decode every image: the sizes (width, height), the images of each note, and the faults of the rest."""
    from ldm.cli.progress import track
    from ldm.images import open_image_noted

    sizes: list[tuple[int, int]] = []
    notes: dict[str, list[str]] = {}
    faults: list[str] = []
    for sample in track(samples, len(samples), "image"):
        try:
            image, found = open_image_noted(sample.image.read(), name=sample.image.name)
        except UserError as error:
            faults.append(str(error))
            continue
        sizes.append(image.size)
        for note in found:
            notes.setdefault(note, []).append(sample.sample_id)
    return sizes, notes, faults


def _report(
    path: Path, samples: "Sequence[Sample]", sizes: list[tuple[int, int]], notes: dict[str, list[str]]
) -> Iterator[str]:
    captions = [caption for sample in samples for caption in sample.captions]
    yield f"{path}: {len(sizes)} usable images, {len(captions)} captions ({len(set(captions))} different)"
    if sizes:
        common = Counter(sizes).most_common(NUM_SHOWN)
        yield "sizes: " + ", ".join(f"{width} x {height} ({count})" for (width, height), count in common)
        yield f"smallest side: {min(map(min, sizes))} pixels; largest: {max(map(max, sizes))} pixels"
    yield "longest captions:"
    for caption in sorted(set(captions), key=lambda c: (-len(c), c))[:NUM_SHOWN]:
        yield f"  {len(caption)} letters: {caption}"
    for note, names in notes.items():
        more = ", ..." if len(names) > NUM_SHOWN else ""
        yield f"note: {note}: {len(names)} images ({', '.join(names[:NUM_SHOWN])}{more})"
