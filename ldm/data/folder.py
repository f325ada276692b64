"""A folder of captioned images, read whole: every image has its captions, or the folder is refused.

Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.parquet` (the ImageFolder convention, with
`file_name` and `text`) or from a `.txt` file beside each image. Names that start with a dot are passed over.
"""

import os
from pathlib import Path, PurePosixPath

from ldm.data.metadata import (
    FILE_NAMES,
    Row,
    clean_caption,
    decode_utf8,
    metadata_file,
    read_rows,
    row_text,
    sample_of_row,
)
from ldm.data.sample import FileImage, Sample
from ldm.errors import UserError
from ldm.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES

_DOCUMENTS = frozenset({"readme", "license", "licence", "notice", "attribution", "credits"})


def read_folder(
    root: str | os.PathLike[str], *, caption_column: str = "text", file_column: str = "file_name"
) -> list[Sample]:
    """Every image below `root` with its captions, in the order of the metadata or else of the file names.

    Beside the columns of file names and captions a row may have `captions` (a list of further captions) and
    `flip` (false where a mirrored image would make its captions wrong).

    Raises:
        UserError: the folder is missing or empty, captions and images do not match one to one, a row or a
            file is faulty, or something leads out of the folder. Nothing is left out silently.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", "name a folder of images with captions")
    names = scan(root)
    images = [name for name in names if _suffix(name) in IMAGE_SUFFIXES]
    sidecars = [name for name in names if _suffix(name) == ".txt"]
    metadata = metadata_file(root)
    if not images and metadata is None:
        raise UserError(
            f"{root}: no images in this folder", "add images with captions, or name another folder"
        )
    if metadata is None:
        _refuse_nested_metadata(root, names)
        return _read_sidecars(root, images, sidecars)
    samples = _read_metadata(root, metadata, caption_column, file_column)
    _refuse_unlisted(metadata, samples, images, sidecars)
    return samples


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def scan(root: Path) -> list[str]:
    """The sorted names of all files below `root`, relative and with "/"; hidden ones are passed over.

    Raises:
        UserError: a folder is unreadable or a link, a file's name is not UTF-8, or it is a picture that is not read.
    """
    names = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            if Path(folder, name).is_symlink():
                raise UserError(f"{Path(folder, name)}: a linked folder is not followed", "put a copy there")
        for name in files:
            if not name.startswith("."):
                names.append(Path(folder, name).relative_to(root).as_posix())
    for name in names:
        _check_name(root, name)
    return sorted(names)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: {error.strerror}", "make the folder readable") from error


def _check_name(root: Path, name: str) -> None:
    """Refuse what we would otherwise have to pass over, or could not key a random draw by."""
    if _suffix(name) in UNREADABLE_SUFFIXES:
        raise UserError(
            f"{root / name}: this image format is not read", "convert it to PNG or JPEG, or move it away"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise UserError(f"{root}/{shown}: the file name is not UTF-8", "rename the file") from None


def _inside(root: Path, name: str, place: str) -> Path:
    """The path of a file named in the folder; a name that leads elsewhere is refused."""
    path = root / name
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise UserError(f"{place}: {name!r} points outside {root}", "use a name relative to the folder")
    if not path.is_file():
        raise UserError(f"{place}: {name!r} is not in {root}", "add the file or remove the row")
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{place}: {name!r} is a link that leads out of {root}", "put a copy there")
    return path


def _refuse_nested_metadata(root: Path, names: list[str]) -> None:
    """A split such as train/ has its own metadata, whose names are relative to it."""
    nested = [name for name in names if PurePosixPath(name).name in FILE_NAMES]
    if nested:
        raise UserError(f"{root}: the metadata lies deeper, in {nested[0]}", "name the folder that holds it")


def _read_metadata(root: Path, metadata: Path, caption_column: str, file_column: str) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for row in read_rows(metadata):
        sample = _sample_of_row(root, row, caption_column, file_column)
        if sample.sample_id in samples:
            raise UserError(
                f"{row.place}: {sample.sample_id!r} has a row already",
                "keep one row an image; further captions go into its list `captions`",
            )
        samples[sample.sample_id] = sample
    if not samples:
        raise UserError(
            f"{metadata}: no rows", f"add a row with {file_column} and {caption_column} for each image"
        )
    return list(samples.values())


def _sample_of_row(root: Path, row: Row, caption_column: str, file_column: str) -> Sample:
    name = row_text(row, file_column)
    sample = sample_of_row(
        row,
        PurePosixPath(name).as_posix(),
        FileImage(root / name),
        caption_column=caption_column,
        file_column=file_column,
    )
    _inside(root, name, row.place)
    return sample


def _read_sidecars(root: Path, images: list[str], sidecars: list[str]) -> list[Sample]:
    """One sample an image, its caption the whole text of the `.txt` file of the same name."""
    captioned = {_stem(name): name for name in sidecars}
    missing = [name for name in images if _stem(name) not in captioned]
    if missing:
        raise UserError(
            f"{root}: {_count(missing, 'image', 'without a caption')}",
            "add metadata.jsonl or a .txt file beside each image, or move them away",
        )
    stems = {_stem(name) for name in images}
    alone = [n for n in sidecars if _stem(n) not in stems and PurePosixPath(n).stem.lower() not in _DOCUMENTS]
    if alone:
        raise UserError(
            f"{root}: {_count(alone, '.txt file', 'without an image')}", "add the image or move it away"
        )
    return [_sample_of_sidecar(root, name, captioned[_stem(name)]) for name in images]


def _sample_of_sidecar(root: Path, image: str, sidecar: str) -> Sample:
    path = _inside(root, sidecar, str(root))
    caption = clean_caption(decode_utf8(path), str(path))
    return Sample(sample_id=image, image=FileImage(_inside(root, image, str(root))), captions=(caption,))


def _refuse_unlisted(metadata: Path, samples: list[Sample], images: list[str], sidecars: list[str]) -> None:
    """Images or captions that the metadata would make us drop in silence."""
    listed = {sample.sample_id for sample in samples}
    unlisted = [name for name in images if name not in listed]
    if unlisted:
        raise UserError(
            f"{metadata}: {_count(unlisted, 'image', 'without a row')}", "add rows or move them away"
        )
    stems = {_stem(name) for name in listed}
    twice = [name for name in sidecars if _stem(name) in stems]
    if twice:
        raise UserError(
            f"{metadata}: {_count(twice, '.txt file', 'beside images that have a row')}",
            "keep the metadata or the .txt files, not both",
        )


def _stem(name: str) -> str:
    """The name without its suffix: `a/b.c.png` and `a/b.c.txt` belong together."""
    return PurePosixPath(name).with_suffix("").as_posix()


def _count(names: list[str], noun: str, rest: str) -> str:
    """How many, and the first three: "5 images without a row (a.png, b.png, c.png, ...)"."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} {rest} ({shown})"
