"""A folder of captioned images. Every image must have a caption, or the folder is refused.

Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.parquet` (the ImageFolder convention, with columns
`file_name` and `text`) or from a `.txt` file next to each image. Names that start with a dot are ignored.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from ldm.data.sample import NO_INPUTS, FileImage, Sample, TaskInputs
from ldm.data.sources.metadata import (
    FILE_NAMES,
    Row,
    clean_caption,
    decode_utf8,
    metadata_file,
    name_column,
    read_rows,
    row_text,
    sample_of_row,
)
from ldm.data.sources.scan import DOCUMENTS, composed, file_inside, is_folder, quoted, scan, stem, suffix
from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES

FILE_NAME_ENDING = "_file_name"
"""Ends the columns that name further images: `source_file_name` is the image `source`."""


def read_folder(
    root: str | os.PathLike[str],
    *,
    caption_column: str = "text",
    file_column: str = "file_name",
    inputs: TaskInputs = NO_INPUTS,
) -> list[Sample]:
    """All images below `root` with their captions, in the order of the metadata, or of the file names without it.

    Besides the file name and the caption, a row may have `captions` (a list of further captions) and `flip` (false if
    the captions are wrong for a mirrored image). Columns such as `source_file_name` name further images; only those
    that `inputs` asks for are read.

    Args:
        inputs: the further images and texts that the task needs. Every row must have them.

    Raises:
        UserError: the folder is missing or empty, images and captions do not match one to one, a row or a file is
            faulty, or a name leads out of the folder. Nothing is dropped silently.
    """
    root = Path(root)
    if not is_folder(root):
        raise UserError(f"{root}: no such folder", "name a folder of images with captions")
    names = scan(root)
    images = [name for name in names if suffix(name) in IMAGE_SUFFIXES]
    sidecars = [name for name in names if suffix(name) == ".txt"]
    metadata = metadata_file(root)
    if not images and metadata is None:
        raise UserError(
            f"{root}: no images in this folder", "add images with captions, or name another folder"
        )
    if metadata is None:
        _refuse_nested_metadata(root, names)
        _refuse_inputs(root, inputs)
        return _read_sidecars(root, images, sidecars)
    on_disk = {composed(name): name for name in names} | {name: name for name in names}
    read_row = partial(
        _sample_of_row,
        root,
        on_disk=on_disk,
        caption_column=caption_column,
        file_column=file_column,
        inputs=inputs,
    )
    samples = _read_metadata(metadata, read_row, f"{file_column} and {caption_column}")
    named = {on_disk.get(name) or on_disk.get(composed(name)) for name in _named_files(samples.values())}
    _refuse_unlisted(metadata, samples, [name for name in images if name not in named], sidecars)
    return list(samples.values())


def _named_files(samples: Iterable[Sample]) -> Iterator[str]:
    """The files in columns `*_file_name`. They need no row of their own, even if no task asks for them."""
    for sample in samples:
        for column, value in sample.extra.items():
            if column.endswith(FILE_NAME_ENDING) and isinstance(value, str):
                yield PurePosixPath(value).as_posix()


def _refuse_nested_metadata(root: Path, names: list[str]) -> None:
    """A split such as train/ has its own metadata, with names relative to it."""
    nested = [name for name in names if PurePosixPath(name).name in FILE_NAMES]
    if nested:
        raise UserError(
            f"{root}: the metadata is in a subfolder: {nested[0]}", "name the folder that contains it"
        )


def _refuse_inputs(root: Path, inputs: TaskInputs) -> None:
    columns = [*(f"{name}{FILE_NAME_ENDING}" for name in inputs.further_images), *inputs.texts]
    if columns:
        raise UserError(
            f"{root}: .txt files hold captions only, and the task needs {', '.join(columns)}",
            f"write metadata.jsonl with file_name, text and {', '.join(columns)}",
        )


def _read_metadata(
    metadata: Path, read_row: Callable[[Row], tuple[str, Sample]], columns: str
) -> dict[str, Sample]:
    """The sample of each row, by its file name on disk."""
    samples: dict[str, Sample] = {}
    for row in read_rows(metadata):
        name, sample = read_row(row)
        if name in samples:
            raise UserError(
                f"{row.place}: {quoted(sample.sample_id)} has a row already",
                "keep one row per image; further captions go into its list `captions`",
            )
        samples[name] = sample
    if not samples:
        raise UserError(f"{metadata}: no rows", f"add a row with {columns} for each image")
    return samples


def _sample_of_row(
    root: Path,
    row: Row,
    *,
    on_disk: dict[str, str],
    caption_column: str,
    file_column: str,
    inputs: TaskInputs,
) -> tuple[str, Sample]:
    """The file's name on disk, whose Unicode form may differ from the row's, and the sample."""
    file_column = name_column(row, file_column)
    sample_id = PurePosixPath(row_text(row, file_column, "image_column")).as_posix()
    name = on_disk.get(sample_id) or on_disk.get(composed(sample_id), sample_id)
    sample = sample_of_row(
        row,
        sample_id,
        FileImage(root / name),
        caption_column=caption_column,
        file_column=file_column,
        images={
            input_name: _named_image(root, row, input_name, on_disk) for input_name in inputs.further_images
        },
        texts=inputs.texts,
    )
    file_inside(root, name, row.place)
    return name, sample


def _named_image(root: Path, row: Row, input_name: str, on_disk: dict[str, str]) -> FileImage:
    """The further image that a row names in its column `NAME_file_name`."""
    given = PurePosixPath(row_text(row, f"{input_name}{FILE_NAME_ENDING}")).as_posix()
    name = on_disk.get(given) or on_disk.get(composed(given), given)
    return FileImage(file_inside(root, name, row.place))


def _read_sidecars(root: Path, images: list[str], sidecars: list[str]) -> list[Sample]:
    """One sample per image; its caption is the content of the `.txt` file of the same name."""
    captioned = _by_stem(root, sidecars, "are captions of the same image")
    missing = [name for name in images if stem(name) not in captioned]
    if missing:
        raise UserError(
            f"{root}: {_count(missing, 'image', 'without a caption')}",
            "add metadata.jsonl or a .txt file for each image, or move them away",
        )
    stems = _by_stem(root, images, "share one .txt file").keys()
    alone = [n for n in sidecars if stem(n) not in stems and PurePosixPath(n).stem.lower() not in DOCUMENTS]
    if alone:
        raise UserError(
            f"{root}: {_count(alone, '.txt file', 'without an image')}", "add the image or move it away"
        )
    return [_sample_of_sidecar(root, name, captioned[stem(name)]) for name in images]


def _by_stem(root: Path, names: list[str], fault: str) -> dict[str, str]:
    """The names by their stems, which image and caption share; two names with one stem are refused."""
    found: dict[str, str] = {}
    for name in names:
        if stem(name) in found:
            raise UserError(f"{root}: {found[stem(name)]} and {name} {fault}", "rename or remove one of them")
        found[stem(name)] = name
    return found


def _sample_of_sidecar(root: Path, image: str, sidecar: str) -> Sample:
    path = file_inside(root, sidecar, str(root))
    caption = clean_caption(decode_utf8(path), str(path))
    return Sample(sample_id=image, image=FileImage(file_inside(root, image, str(root))), captions=(caption,))


def _refuse_unlisted(metadata: Path, listed: Iterable[str], images: list[str], sidecars: list[str]) -> None:
    """Refuse images and captions that the metadata would silently leave out."""
    listed = set(listed)
    unlisted = [name for name in images if name not in listed]
    if unlisted:
        raise UserError(
            f"{metadata}: {_count(unlisted, 'image', 'without a row')}", "add rows or move them away"
        )
    stems = {stem(name) for name in listed}
    twice = [name for name in sidecars if stem(name) in stems]
    if twice:
        raise UserError(
            f"{metadata}: {_count(twice, '.txt file', 'next to images that have a row')}",
            "keep the metadata or the .txt files, not both",
        )


def _count(names: list[str], noun: str, rest: str) -> str:
    """The number and the first three: "5 images without a row (a.png, b.png, c.png, ...)"."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} {rest} ({shown})"
