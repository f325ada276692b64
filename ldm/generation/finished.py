"""Which pictures an earlier call has finished: those whose file is whole and says what it should."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import UserError, warn
from ldm.generation.batches import PictureBatch
from ldm.generation.pictures import Target
from ldm.io.images import open_image
from ldm.pipeline.record import read_settings

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline

PROGRAMS = ("versions", "ldm_version", "decoded_in_tiles")
"""What may differ: a picture is not made again because a library has a new version, or for the memory of the day."""

_MOST_NAMED = 3


def finished_pictures(
    pipeline: "Pipeline", batches: Sequence[PictureBatch], target: Target
) -> frozenset[int]:
    """The numbers of the pictures that need not be made again. What a killed call left beside them is removed.

    Raises:
        UserError: a file of a picture's name is damaged or was made otherwise, and `target.overwrite` is false. The
            first ones are named.

    Warns:
        LdmWarning: the same, where `target.overwrite` is true: these are made again.
    """
    _remove_leftovers(target.folder, {picture.name for batch in batches for picture in batch.pictures})
    finished, faults = set(), []
    for batch in batches:
        expected = pipeline.settings_of(batch.prompts, batch.seeds, **batch.settings)
        for picture, settings in zip(batch.pictures, expected, strict=True):
            path = target.folder / picture.name
            if not path.exists():
                continue
            if fault := picture_fault(path, settings):
                faults.append(fault)
            else:
                finished.add(picture.number)
    _judge(faults, target)
    return frozenset(finished)


def _remove_leftovers(folder: Path, names: set[str]) -> None:
    """Remove the temporary files of these pictures, whose writer was killed: see `ldm.io.files.write_bytes`."""
    for path in folder.glob(".tmp-*.png-*"):
        if path.name.removeprefix(".tmp-").rpartition("-")[0] in names:
            path.unlink()


def _judge(faults: list[str], target: Target) -> None:
    if not faults:
        return
    more = f" (and {len(faults) - _MOST_NAMED} more files)" if len(faults) > _MOST_NAMED else ""
    named = "; ".join(faults[:_MOST_NAMED]) + more
    if not target.overwrite:
        raise UserError(named, "add --overwrite to make such pictures again, or give another --output")
    warn(f"made again: {named}")


def picture_fault(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What keeps a file from being the picture with these settings, in a few words that name it, or None.

    Every checksum in the file is compared and every pixel decoded.
    """
    try:
        found = read_settings(path)
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        size = open_image(path).size
    except UserError as error:
        return error.what
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        return f"{path}: damaged ({error})"
    wanted = json.loads(json.dumps(dict(expected)))  # a tuple comes back as a list
    if size != (wanted["width"], wanted["height"]):
        return f"{path} has {size[0]} x {size[1]} pixels, not {wanted['width']} x {wanted['height']}"
    names = [name for name in {**wanted, **found} if name not in PROGRAMS]
    other = next((name for name in names if found.get(name) != wanted.get(name)), None)
    return other and f"{path} was made with {_told(other, found)}, not {_told(other, wanted)}"


def _told(name: str, settings: Mapping[str, Any]) -> str:
    """A setting as a short text."""
    text = f"{name} {json.dumps(settings.get(name), ensure_ascii=False)}"
    return text if len(text) <= 60 else text[:59] + "…"
