"""Loss masks: separate image files, or the transparency of the images."""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ldm.data.sample import FileImage, ImageSource, Sample, Stamp
from ldm.data.sources.scan import composed, is_folder, scan
from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES, open_alpha


@dataclass(frozen=True)
class AlphaMask:
    """The transparency of an image as a grey image: white where it is opaque, black where it is transparent."""

    image: ImageSource

    @property
    def name(self) -> str:
        return f"transparency of {self.image.name}"

    def read(self) -> bytes:
        file = io.BytesIO()
        open_alpha(self.image.read(), name=self.image.name).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def stamp(self) -> Stamp | None:
        stamp = self.image.stamp()
        return stamp and (f"{stamp[0]}#alpha", *stamp[1:])


def with_masks(samples: Sequence[Sample], folder: Path, refused: Collection[str] = ()) -> list[Sample]:
    """Each sample with its mask: the image in `folder` that is named like the sample's id, with any suffix.

    Args:
        refused: ids of samples that are not used; the folder may still have their masks.

    Raises:
        UserError: the folder is missing, samples and masks do not match, or a sample has two masks.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder", "name a folder of masks")
    masks = _masks_by_stem(folder)
    missing = [sample.sample_id for sample in samples if _stem(sample.sample_id) not in masks]
    if missing:
        raise UserError(
            f"{folder}: no mask for {_some(missing)}",
            "add white masks, or move these samples to a separate source",
        )
    known = {_stem(sample_id) for sample_id in (*(sample.sample_id for sample in samples), *refused)}
    if alone := [name for stem, name in masks.items() if stem not in known]:
        raise UserError(f"{folder}: no sample for the masks {_some(alone)}", "rename or remove them")
    return [replace(s, loss_mask=FileImage(folder / masks[_stem(s.sample_id)])) for s in samples]


def _masks_by_stem(folder: Path) -> dict[str, str]:
    masks: dict[str, str] = {}
    for name in scan(folder):
        if PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if _stem(name) in masks:
            raise UserError(
                f"{folder}: {masks[_stem(name)]} and {name} are masks of the same sample", "keep one of them"
            )
        masks[_stem(name)] = name
    return masks


def _stem(name: str) -> str:
    """The name without an image suffix; an id such as `a.tar/b` has none."""
    path = PurePosixPath(composed(name))
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else path.as_posix()


def _some(names: Sequence[str]) -> str:
    """The first three and the total: "a.png, b.png, c.png (3 of 12)"."""
    return ", ".join(names[:3]) + (f" (3 of {len(names)})" if len(names) > 3 else "")
