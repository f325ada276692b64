"""The images that `ldm generate` starts from: files or folders of them, each used with every prompt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES
from ldm.pipeline.batches import Prompt
from ldm.pipeline.input_images import ALPHA, read_inputs


def with_images(prompts: Sequence[Prompt], image: Path | None, mask: str | None) -> list[Prompt]:
    """Every prompt with every image; a prompt that has images of its own keeps them.

    Args:
        image: a file, or a folder of which every image is used, in the order of their names.
        mask: a file for all images, a folder with a mask of the same name for each, or `ALPHA`.

    Raises:
        UserError: a file is missing, damaged or not an image, a folder has no images or lacks a mask, or a mask does
            not fit its image.
    """
    if image is None and mask is None:
        return list(prompts)
    given = [read_inputs(each, mask_for(each, mask)) for each in image_files(image)] or [
        read_inputs(None, mask)
    ]
    paired: list[Prompt] = []
    for prompt in prompts:
        paired += [prompt] if prompt.inputs else [replace(prompt, inputs=each) for each in given]
    return paired


def image_files(place: Path | None) -> list[Path]:
    """A file, or the images in a folder by name.

    Raises:
        UserError: the folder has none.
    """
    if place is None or not place.is_dir():
        return [] if place is None else [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"{place} has no images", "give a file, or a folder with images")
    return found


def mask_for(image: Path, mask: str | None) -> str | Path | None:
    """The mask of an image: the one given, or that of the same name in the folder given."""
    if mask is None or mask == ALPHA or not Path(mask).is_dir():
        return mask
    found = [file for file in image_files(Path(mask)) if file.stem == image.stem]
    if len(found) != 1:
        what = f"{mask} has no mask" if not found else f"{mask} has several masks"
        raise UserError(f"{what} for {image.name}", f"put one there as {image.stem}.png")
    return found[0]
