"""Captioned images in WebDataset tars: files with the same name up to the first dot are one sample.

A tar is indexed once by its headers and then read by offset. Nothing is unpacked, so no member can escape; members that
try to (an absolute name, `..`, a link, a device) are refused by name.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.data.sample import NO_INPUTS, Refusal, Sample, Stamp, TaskInputs, refusal_of
from ldm.data.sources.metadata import MAX_CAPTION_BYTES, loads_once, row_of, sample_of_row
from ldm.data.sources.no_caption import MissingCaption
from ldm.data.sources.parquet import row_stamp
from ldm.data.sources.scan import DOCUMENTS, scan
from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from ldm.io.opening import MAX_IMAGE_BYTES, open_file

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_HEADER_BYTES = 1 << 20
"""Maximum size of a header with a long name or further attributes."""

MAX_PADDING_BYTES = 1 << 26
"""Maximum number of zeros after the last member; writers fill up a record, usually of 10 kB."""


class HeaderReader(io.RawIOBase):
    """A file from which tarfile can read headers only: it would allocate whatever size a header claims."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__()
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


@dataclass(frozen=True)
class TarImage:
    """A member of a tar, read by its offset.

    Attributes:
        offset: of its first byte in the tar.
        size: in bytes.
        member: its name in the tar.
    """

    path: Path
    offset: int
    size: int
    member: str

    @property
    def name(self) -> str:
        return f"{self.path.name}: {self.member}"

    def read(self) -> bytes:
        if self.size > MAX_IMAGE_BYTES:
            raise UserError(f"{self.name}: {self.size:,} bytes are too many for an image", "shrink the image")
        try:
            with open_file(self.path) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}", "make the tar readable") from error
        if len(data) != self.size:
            raise UserError(f"{self.name}: cut off", "download the tar again")
        return data

    def stamp(self) -> Stamp | None:
        return row_stamp(self.path, f"{self.offset}+{self.size}")


@dataclass
class _Group:
    """The members of a sample by what follows the first dot of their names, and the first fault among them."""

    members: dict[str, TarImage] = field(default_factory=dict)
    fault: str | None = None


def tar_files(root: Path) -> list[tuple[str, Path]]:
    """The tars of a folder with their names relative to it, or a single tar with its name.

    Raises:
        UserError: there are none, or some are compressed.
    """
    names = [root.name] if root.is_file() else scan(root)
    packed = [name for name in names if name.lower().endswith(COMPRESSED_SUFFIXES)]
    if packed:
        raise UserError(f"{root}: compressed tars are not supported ({packed[0]})", "decompress it first")
    if root.is_file():
        return [(root.name, root)]
    names = [name for name in names if name.lower().endswith(".tar")]
    if not names:
        raise UserError(f"{root}: no tars in this folder", "name another folder")
    return [(name, root / name) for name in names]


def read_tar(
    name: str,
    path: Path,
    *,
    image_column: str,
    caption_column: str,
    inputs: TaskInputs = NO_INPUTS,
    missing: MissingCaption = "error",
) -> Iterator[Sample | Refusal]:
    """Every group of files in a tar as a sample, or as a refusal if an image or the caption is missing or faulty.

    The caption is the content of the `.txt` file, or else the value `caption_column` of the `.json` file, whose other
    values go into `extra`. Names that begin with a dot are ignored, and so are README, LICENSE and the like.

    Args:
        name: the tar's name, with which the ids begin: the files `a/b.jpg` and `a/b.txt` are `name/a/b`.
        image_column: the suffix of the main image (`jpg`) if a sample has several.
        inputs: the further images and texts that the task needs: an image `source` is the member `KEY.source.png` (or
            another suffix), a text `instruction` the member `KEY.instruction.txt` or a value of the `.json` file.
        missing: what to do with a sample that has no caption; its file name is `KEY`.

    Raises:
        UserError: the tar is damaged or truncated.
    """
    for key, group in _groups(path).items():
        if _is_document(key, group):
            continue
        sample_id = f"{name}/{key}"
        columns = (image_column, caption_column)
        try:
            yield _sample(sample_id, f"{path.name}: {key}", group, columns, inputs, missing)
        except UserError as error:
            yield refusal_of(sample_id, error)


def _is_document(key: str, group: _Group) -> bool:
    """Whether these are documents such as LICENSE and README.txt."""
    return (
        key.rpartition("/")[2].lower() in DOCUMENTS
        and group.members.keys() <= {"", "md", "txt"}
        and not group.fault
    )


def _sample(
    sample_id: str,
    place: str,
    group: _Group,
    columns: tuple[str, str],
    inputs: TaskInputs,
    missing: MissingCaption,
) -> Sample:
    image_column, caption_column = columns
    if group.fault:
        raise UserError(group.fault, "remove it or put a regular file there")
    image = _choose_image(place, group.members, image_column)
    values = _read_json(group.members["json"]) if "json" in group.members else {}
    if "txt" in group.members:
        values[caption_column] = _read_text(group.members["txt"])
    if not values and missing == "error":
        raise UserError(f"{place}: no caption", "add a .txt or .json file of this name")
    values |= {
        text: _read_text(member) for text in inputs.texts if (member := group.members.get(f"{text}.txt"))
    }
    return sample_of_row(
        row_of(place, values),
        sample_id,
        image,
        caption_column=caption_column,
        images={name: _named_image(place, group.members, name) for name in inputs.further_images},
        texts=inputs.texts,
        missing=missing,
        name=image.member,
    )


def _named_image(place: str, members: dict[str, TarImage], name: str) -> TarImage:
    """The member `KEY.NAME.SUFFIX` with an image suffix."""
    found = [
        member
        for ending, member in members.items()
        if ending.startswith(f"{name}.") and f".{ending.removeprefix(f'{name}.')}" in IMAGE_SUFFIXES
    ]
    if not found:
        raise UserError(
            f"{place}: no image {name!r}, which the task needs",
            f"add it as {place.split(': ')[1]}.{name}.png",
        )
    if len(found) > 1:
        raise UserError(f"{place}: several images {name!r}", "keep one of them")
    return found[0]


def _choose_image(place: str, members: dict[str, TarImage], image_column: str) -> TarImage:
    images = {suffix: member for suffix, member in members.items() if f".{suffix}" in IMAGE_SUFFIXES}
    if image_column in images:
        return images[image_column]
    there = ", ".join(sorted(members))
    if len(images) > 1:
        raise UserError(f"{place}: several images ({there})", "set image_column to one suffix")
    if any(f".{suffix}" in UNREADABLE_SUFFIXES for suffix in members):
        raise UserError(f"{place}: this image format is not supported ({there})", "convert it to PNG or JPEG")
    if not images:
        raise UserError(f"{place}: no image, only {there}", "files belong together up to the first dot")
    return next(iter(images.values()))


def _read_text(member: TarImage) -> str:
    if member.size > MAX_CAPTION_BYTES:
        raise UserError(f"{member.name}: {member.size} bytes are too many for a caption", "remove the file")
    try:
        return member.read().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{member.name}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None


def _read_json(member: TarImage) -> dict[str, Any]:
    try:
        values = loads_once(_read_text(member), member.name)
    except ValueError as error:
        raise UserError(f"{member.name}: not JSON ({error})", "write one JSON object") from None
    if not isinstance(values, dict):
        raise UserError(f"{member.name}: not a JSON object", 'write {"text": ...}')
    return values


def _groups(path: Path) -> dict[str, _Group]:
    """The samples of a tar by name up to the first dot, in the order of the tar."""
    groups: dict[str, _Group] = {}
    for member in _members(path):
        fault = _fault(member)
        name = repr(member.name)[1:-1] if fault else member.name  # printable
        folder, _, base = name.rpartition("/")
        if member.isdir() or (base.startswith(".") and not fault):
            continue
        stem, _, suffix = base.partition(".")
        group = groups.setdefault(f"{folder}/{stem}" if folder and stem else stem or name, _Group())
        if suffix.lower() in group.members:
            fault = "occurs twice"
        if fault and not group.fault:
            group.fault = f"{path.name}: '{name}' {fault}"
        group.members[suffix.lower()] = TarImage(path, member.offset_data, member.size, name)
    return groups


def _fault(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member according to its header."""
    if member.isdir():
        return None
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        return "leads out of the tar"
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in member.name):
        return "is not a UTF-8 name"
    if member.issym() or member.islnk():
        return "is a link"
    if not member.isreg() or member.issparse():
        return "is not a regular file"
    return None


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar in order. tarfile takes garbage between them for the end; here it is an error."""
    try:
        size = path.stat().st_size
        with open_file(path) as file, tarfile.open(fileobj=HeaderReader(file), mode="r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                if member.offset < end or member.size < 0 or member.offset_data > size:
                    raise tarfile.ReadError(f"a wrong header at byte {member.offset}")
                end = member.offset_data + (member.size if member.isreg() else 0)
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                yield member
            _check_end(path, tar.offset)
    except Exception as error:  # bad headers raise almost anything
        raise UserError(f"{path}: not a readable tar ({_one_line(error)})", "download it again") from error


def _check_end(path: Path, offset: int) -> None:
    """Check that only zeros follow the last member."""
    with open_file(path) as file:
        if file.seek(0, io.SEEK_END) - offset > MAX_PADDING_BYTES:
            raise tarfile.ReadError(f"more than {MAX_PADDING_BYTES:,} bytes after the last member")
        file.seek(offset)
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("data after the last member, as in a damaged tar or two joined ones")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
