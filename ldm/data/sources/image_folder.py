"""A folder of captioned images. Every image must have a caption, or the folder is refused.

Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.parquet` (the ImageFolder convention, with columns
`file_name` and `text`) or from a `.txt` file next to each image. Names that start with a dot are ignored.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ldm.data.sample import NO_INPUTS, FileImage, Refusal, Sample, TaskInputs, refusal_of
from ldm.data.sources.metadata import (
    FILE_NAMES,
    NoColumn,
    Row,
    clean_caption,
    decode_utf8,
    metadata_file,
    name_column,
    read_rows,
    row_text,
    sample_of_row,
)
from ldm.data.sources.no_caption import MissingCaption, caption_by_rule
from ldm.data.sources.scan import DOCUMENTS, FilesInside, composed, is_folder, quoted, scan, stem, suffix
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
    missing: MissingCaption = "error",
) -> list[Sample]:
    """All images below `root` with their captions, in the order of the metadata, or of the file names without it.

    Besides the file name and the caption, a row may have `captions` (a list of further captions) and `flip` (false if
    the captions are wrong for a mirrored image). Columns such as `source_file_name` name further images; only those
    that `inputs` asks for are read.

    Args:
        inputs: the further images and texts that the task needs. Every row must have them.
        missing: what to do with an image that has no caption.

    Raises:
        UserError: the folder is missing or empty, images and captions do not match one to one, a row or a file is
            faulty, or a name leads out of the folder. Nothing is dropped silently.
    """
    columns = FolderColumns(caption_column, file_column, inputs, missing)
    samples, faults = examine_folder(Path(root), columns)
    faults.raise_if_any()
    return samples


@dataclass(frozen=True)
class FolderColumns:
    """What is read of each image: the columns of the metadata, what the task needs, the rule for missing captions."""

    caption: str = "text"
    file: str = "file_name"
    inputs: TaskInputs = NO_INPUTS
    missing: MissingCaption = "error"


@dataclass
class FolderFaults:
    """Everything that is wrong in a folder, in the order in which it was found.

    Attributes:
        errors: one for each kind of fault or faulty row, as they are raised.
        refusals: one for each file or row.
    """

    root: Path
    errors: list[UserError] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)

    def add(self, name: str, error: UserError) -> None:
        """A fault of one file or row; `name` is its id if no other fault has it."""
        self.errors.append(error)
        self._refuse(name, error)

    def add_each(self, place: Path, names: Sequence[str], noun: str, rest: str, hint: str) -> None:
        """The same fault of several files: "3 images without a caption"."""
        if names:
            self.errors.append(UserError(f"{place}: {_count(names, noun, rest)}", hint))
        for name in names:
            self._refuse(name, UserError(f"{self.root / name}: {noun} {rest}", hint))

    def _refuse(self, name: str, error: UserError) -> None:
        number, sample_id = 1, name
        while sample_id in self._ids:
            number += 1
            sample_id = f"{name} ({number})"
        self._ids.add(sample_id)
        self.refusals.append(refusal_of(sample_id, error))

    def raise_if_any(self) -> None:
        """Raise the first error, which says how many more there are."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            first, more = self.errors[0], len(self.refusals) - 1
            check = "`ldm data check` lists all, and its --fix-list FILE.csv what to do"
            raise UserError(first.what, f"{first.hint}; {more} more cannot be used: {check}")


def examine_folder(root: Path, columns: FolderColumns) -> tuple[list[Sample], FolderFaults]:
    """The samples of a folder, and everything that `read_folder` would refuse it for.

    Raises:
        UserError: the folder as a whole cannot be read: it is missing, or has no images, or several metadata files.
    """
    if not is_folder(root):
        raise UserError(f"{root}: no such folder", "name a folder of images with captions")
    faults = FolderFaults(root)
    names = scan(root, faults.add)
    suffixes = [suffix(name) for name in names]
    images = [name for name, each in zip(names, suffixes, strict=True) if each in IMAGE_SUFFIXES]
    sidecars = [name for name, each in zip(names, suffixes, strict=True) if each == ".txt"]
    metadata = metadata_file(root)
    if not images and metadata is None:
        faults.raise_if_any()
        raise UserError(
            f"{root}: no images in this folder", "add images with captions, or name another folder"
        )
    if metadata is None:
        _refuse_nested_metadata(root, names)
        _refuse_inputs(root, columns.inputs)
        return _read_sidecars(root, images, sidecars, columns.missing, faults), faults
    reader = _RowReader(
        root, {composed(name): name for name in names} | {name: name for name in names}, columns
    )
    samples = _read_metadata(metadata, reader, faults)
    named = {reader.resolve(name)[1] for name in _named_files(samples.values())} | reader.faulty
    unlisted = [name for name in images if name not in named and name not in samples]
    samples |= _by_rule(root, unlisted, columns.missing)
    _refuse_unlisted(metadata, samples, unlisted, sidecars, faults)
    if not samples and not faults.errors:
        files = f"{columns.file} and {columns.caption}"
        raise UserError(f"{metadata}: no rows", f"add a row with {files} for each image")
    return list(samples.values()), faults


def _named_files(samples: Iterable[Sample]) -> Iterator[str]:
    """The files in columns `*_file_name`. They need no row of their own, even if no task asks for them."""
    for sample in samples:
        for column, value in sample.extra.items():
            if column.endswith(FILE_NAME_ENDING) and isinstance(value, str):
                yield value


def _refuse_nested_metadata(root: Path, names: list[str]) -> None:
    """A split such as train/ has its own metadata, with names relative to it."""
    nested = [name for name in names if name.rpartition("/")[2] in FILE_NAMES]
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


class _RowReader:
    """Reads the rows of a folder's metadata.

    Attributes:
        on_disk: the files' names on disk by their names in either Unicode form.
        faulty: the files on disk whose rows have a fault.
    """

    def __init__(self, root: Path, on_disk: dict[str, str], columns: FolderColumns) -> None:
        self.root, self.on_disk, self.columns = root, on_disk, columns
        self.files = FilesInside(root)
        self.faulty: set[str] = set()

    def resolve(self, given: str) -> tuple[str, str]:
        """A file's name as the sample's id, and its name on disk, whose Unicode form may differ.

        A name with blanks around it, or with backslashes as Windows writes them, is read as the file that is there.
        """
        if given in self.on_disk:
            return given, self.on_disk[given]
        spellings = (given, given.strip(), given.replace("\\", "/"), given.strip().replace("\\", "/"))
        for spelling in dict.fromkeys(spellings):
            name = PurePosixPath(spelling).as_posix()
            found = self.on_disk.get(name) or self.on_disk.get(composed(name))
            if found is not None:
                return name, found
        name = PurePosixPath(given).as_posix()
        return name, name

    def name_in(self, row: Row) -> str:
        """The file's name as the row has it."""
        return row_text(row, name_column(row, self.columns.file), "image_column")

    def read(self, row: Row) -> tuple[str, Sample]:
        """The file's name on disk, and the sample.

        Raises:
            UserError: the row is faulty, or a file that it names is not there.
        """
        columns = self.columns
        sample_id, name = self.resolve(self.name_in(row))
        images = {each: self._further_image(row, each) for each in columns.inputs.further_images}
        sample = sample_of_row(
            row,
            sample_id,
            FileImage(f"{self.root}{os.sep}{name}"),
            caption_column=columns.caption,
            file_column=name_column(row, columns.file),
            images=images,
            texts=columns.inputs.texts,
            missing=columns.missing,
            name=name,
            root=self.root,
        )
        self.files.find(name, row.place)
        return name, sample

    def _further_image(self, row: Row, input_name: str) -> FileImage:
        """The further image that a row names in its column `NAME_file_name`."""
        _, name = self.resolve(row_text(row, f"{input_name}{FILE_NAME_ENDING}"))
        return FileImage(self.files.find(name, row.place))


def _read_metadata(metadata: Path, reader: _RowReader, faults: FolderFaults) -> dict[str, Sample]:
    """The sample of each row, by its file name on disk."""
    samples: dict[str, Sample] = {}
    for row in read_rows(metadata):
        if isinstance(row, UserError):
            faults.add(row.what.partition(": ")[0], row)
            continue
        try:
            name, sample = reader.read(row)
        except UserError as error:
            faults.add(_id_of_row(row, reader, samples), error)
            continue
        if name in samples:
            what = f"{row.place}: {quoted(sample.sample_id)} has a row already"
            hint = "keep one row per image; further captions go into its list `captions`"
            faults.add(row.place, UserError(what, hint))
            continue
        samples[name] = sample
    if not samples and faults.errors and all(isinstance(error, NoColumn) for error in faults.errors):
        raise faults.errors[0]  # not a fault of each row: the column has another name
    return samples


def _id_of_row(row: Row, reader: _RowReader, samples: dict[str, Sample]) -> str:
    """What a faulty row is called: its file if that can be told, else its place. Notes the file."""
    try:
        sample_id, name = reader.resolve(reader.name_in(row))
    except UserError:
        return row.place
    reader.faulty.add(name)
    return row.place if name in samples else quoted(sample_id)[1:-1]


def _by_rule(root: Path, names: Iterable[str], missing: MissingCaption) -> dict[str, Sample]:
    """A sample for each image whose caption the rule can make."""
    found: dict[str, Sample] = {}
    for name in names:
        caption = caption_by_rule(missing, name, root)
        if caption is not None:
            found[name] = Sample(name, FileImage(root / name), (caption,), caption_rule=missing)
    return found


def _read_sidecars(
    root: Path, images: list[str], sidecars: list[str], missing: MissingCaption, faults: FolderFaults
) -> list[Sample]:
    """One sample per image; its caption is the content of the `.txt` file of the same name."""
    captioned = _by_stem(root, sidecars, "are captions of the same image", faults)
    stems = {name: stem(name) for name in images}
    bare = [name for name in images if stems[name] not in captioned]
    made = _by_rule(root, bare, missing)
    faults.add_each(
        root,
        [name for name in bare if name not in made],
        "image",
        "without a caption",
        "add metadata.jsonl or a .txt file for each image, or move them away",
    )
    chosen = _by_stem(root, images, "share one .txt file", faults)
    alone = [n for n in sidecars if stem(n) not in chosen and PurePosixPath(n).stem.lower() not in DOCUMENTS]
    faults.add_each(root, alone, ".txt file", "without an image", "add the image or move it away")
    samples: list[Sample] = []
    files = FilesInside(root)
    for name in images:
        if name in made:
            samples.append(made[name])
        elif (sidecar := captioned.get(stems[name])) is not None and chosen[stems[name]] == name:
            try:
                samples.append(_sample_of_sidecar(files, name, sidecar, missing))
            except UserError as error:
                faults.add(name, error)
    return samples


def _by_stem(root: Path, names: list[str], fault: str, faults: FolderFaults) -> dict[str, str]:
    """The names by their stems, which image and caption share; two names with one stem are refused."""
    found: dict[str, str] = {}
    for name in names:
        key = stem(name)
        if key in found:
            faults.add(
                name, UserError(f"{root}: {found[key]} and {name} {fault}", "rename or remove one of them")
            )
        else:
            found[key] = name
    return found


def _sample_of_sidecar(files: FilesInside, image: str, sidecar: str, missing: MissingCaption) -> Sample:
    path = files.find(sidecar, str(files.root))
    text = decode_utf8(path)
    by_rule = None if text.strip() else caption_by_rule(missing, image, files.root)
    caption = clean_caption(text, path) if by_rule is None else by_rule
    source = FileImage(files.find(image, str(files.root)))
    return Sample(image, source, (caption,), caption_rule="" if by_rule is None else missing)


def _refuse_unlisted(
    metadata: Path,
    samples: dict[str, Sample],
    unlisted: Iterable[str],
    sidecars: list[str],
    faults: FolderFaults,
) -> None:
    """Refuse images and captions that the metadata would silently leave out."""
    left = [name for name in unlisted if name not in samples]
    faults.add_each(metadata, left, "image", "without a row", "add rows or move them away")
    stems = {stem(name) for name in samples}
    twice = [name for name in sidecars if stem(name) in stems]
    hint = "keep the metadata or the .txt files, not both"
    faults.add_each(metadata, twice, ".txt file", "next to images that have a row", hint)


def _count(names: Sequence[str], noun: str, rest: str) -> str:
    """The number and the first three: "5 images without a row (a.png, b.png, c.png, ...)"."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} {rest} ({shown})"
