"""Which images an earlier call has finished: those whose file is intact and has the right record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError, warn
from ldm.generation.output import Target
from ldm.generation.reproduce import made_with_others
from ldm.io.image_metadata import read_metadata
from ldm.io.image_writing import check_encoded
from ldm.io.images import open_image
from ldm.io.temporary import remove_abandoned_files
from ldm.pipeline.batches import Batch
from ldm.pipeline.record import read_settings, with_public_names

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline

MAY_DIFFER = ("record_version", "versions", "ldm_version", "decoded_in_tiles", "encoded_in_tiles", "safety")
"""Parts of a record for which an image is not made again: newer programs, and how much memory was free that day."""

MODEL_PARTS = "model_parts"
"""The part of a record that names the components of the model; older records have none."""

_MOST_NAMED = 3


def finished_images(pipeline: "Pipeline", batches: Sequence[Batch], target: Target) -> frozenset[int]:
    """The numbers of the images that need not be made again. Temporary files of a killed call are removed.

    Raises:
        UserError: a file with an image's name is damaged or was made differently, and `target.overwrite` is false. The
            first ones are named.

    Warns:
        LdmWarning: the same, if `target.overwrite` is true: these are made again.
    """
    images = [image for batch in batches for image in batch]
    remove_abandoned_files(target.folder, {target.path(image).name for image in images}.__contains__)
    finished, faults = set(), []
    for image, record in zip(images, pipeline.expected_records(images), strict=True):
        path = target.path(image)
        if not path.exists():
            continue
        if (
            fault := image_fault(path, record.to_json())
            or _signature_fault(path, target)
            or _safety_fault(path, target)
        ):
            faults.append(fault)
        else:
            finished.add(image.number)
    _judge(faults, target)
    return frozenset(finished)


def _signature_fault(path: Path, target: Target) -> str | None:
    """Why an intact image has to be made again: signed images are asked for, and it is not signed."""
    return f"{path} is not signed" if target.signing and not read_metadata(path).c2pa else None


def _safety_fault(path: Path, target: Target) -> str | None:
    """Why an intact image has to be made again: checked images are asked for, and it was not checked or is refused."""
    if target.safety is None:
        return None
    note = read_settings(path).get("safety")
    if not isinstance(note, dict):
        return f"{path} was not checked for safety"
    return f"{path} may be unsafe to show" if target.safety.refuses and note.get("flagged") else None


def _judge(faults: list[str], target: Target) -> None:
    if not faults:
        return
    more = f" (and {len(faults) - _MOST_NAMED} more files)" if len(faults) > _MOST_NAMED else ""
    named = "; ".join(faults[:_MOST_NAMED]) + more
    if not target.overwrite:
        raise UserError(named, "add --overwrite to make such images again, or give another --output")
    warn(f"made again: {named}")


def image_fault(path: Path, expected: Mapping[str, Any]) -> str | None:
    """Why a file is not the image with this record, in a few words that name the file; None if it is.

    Every checksum in the file is compared and every pixel decoded.

    Args:
        expected: as `ImageRecord.to_json` returns it.
    """
    try:
        found = with_public_names(read_settings(path))
        check_encoded(path)
        size = open_image(path).size
    except UserError as error:
        return error.what
    except Exception as error:  # a decoder of foreign bytes raises nearly anything
        return f"{path}: damaged ({error})"
    if size != (expected["width"], expected["height"]):
        return f"{path} has {size[0]} x {size[1]} pixels, not {expected['width']} x {expected['height']}"
    names = [name for name in {**expected, **found} if name not in (*MAY_DIFFER, MODEL_PARTS)]
    other = next((name for name in names if found.get(name) != expected.get(name)), None)
    if other:
        return f"{path} was made with {_shown(other, found)}, not {_shown(other, expected)}"
    recorded = found.get(MODEL_PARTS)
    if not isinstance(recorded, dict | None):
        return f"{path} has a broken record: {MODEL_PARTS} is not an object"
    return made_with_others(path, recorded, expected.get(MODEL_PARTS) or {}) or None


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    """A setting as a short text."""
    text = f"{name} {json.dumps(settings.get(name), ensure_ascii=False)}"
    return text if len(text) <= 60 else text[:59] + "…"
