"""The images that `ldm generate` starts from or is controlled by: files or folders of them, used with every prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.images import IMAGE_SUFFIXES
from ldm.models.adapters.fuse import split_weight
from ldm.models.control.hints import split_kind
from ldm.pipeline.batches import Prompt
from ldm.pipeline.control_images import ControlImage, read_control, read_reference
from ldm.pipeline.input_images import ALPHA, InputImage, read_inputs


@dataclass(frozen=True)
class NamedControl:
    """A control image as the user names it.

    Attributes:
        place: a file, or a folder with an image of the same name for each image.
        scale: None if it is left open.
    """

    kind: str
    place: Path
    scale: float | None = None


def parse_control(text: str, folder: Path = Path()) -> NamedControl:
    """`KIND=FILE` or `KIND=FILE:SCALE`.

    Args:
        folder: where the file is looked up.

    Raises:
        UserError: the kind is unknown, or the scale is not a number.
    """
    kind, rest = split_kind(text, "canny=FILE:0.8")
    place, scale = split_weight(str(folder / Path(rest).expanduser()))
    return NamedControl(kind, place, scale)


def parse_controls(texts: Sequence[str], folder: Path = Path()) -> tuple[NamedControl, ...]:
    """Several of them, each of another kind.

    Raises:
        UserError: two are of one kind, or as `parse_control`.
    """
    named = tuple(parse_control(text, folder) for text in texts)
    kinds = [each.kind for each in named]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise UserError(f"two control images of kind {twice}", "give one of each kind")
    return named


def parse_reference(text: str, folder: Path = Path()) -> ControlImage:
    """`FILE`, `FILE:SCALE` or `FILE:BLOCK=SCALE,BLOCK=SCALE`.

    Args:
        folder: where the file is looked up.

    Raises:
        UserError: a scale is not a number, or as `read_reference`.
    """
    path, colon, tail = text.rpartition(":")
    if not colon or "=" not in tail or (folder / Path(text).expanduser()).exists():
        place, scale = split_weight(str(folder / Path(text).expanduser()))
        return read_reference(place, scale)
    blocks = {}
    for part in tail.split(","):
        block, _, number = part.partition("=")
        try:
            blocks[block.strip()] = float(number)
        except ValueError:
            what = f"the scale {number!r} in {text!r} is not a number"
            raise UserError(what, "write FILE:down=0.2,up.block_0=1") from None
    return read_reference(folder / Path(path).expanduser(), None, blocks)


@dataclass(frozen=True)
class GivenImages:
    """What is given for every prompt: as files, or as folders with files of the same names.

    Attributes:
        mask: a file for all images, a folder, or `ALPHA`.
    """

    image: Path | None = None
    mask: str | None = None
    controls: tuple[NamedControl, ...] = ()
    _read: dict[tuple[str, Path], ControlImage] = field(default_factory=dict)

    def rows(self) -> list[tuple[Mapping[str, InputImage], tuple[ControlImage, ...]]]:
        """The images and the control images of each image to make; one row if all are files.

        Raises:
            UserError: a file is missing, damaged or not an image, a folder has no images or lacks one, or a mask does
                not fit its image.
        """
        folders = [each.place for each in self.controls if each.place.is_dir()]
        files: Sequence[Path | None] = image_files(self.image or (folders[0] if folders else None)) or [None]
        return [(self._inputs(file), self._controls(file)) for file in files]

    def _inputs(self, file: Path | None) -> dict[str, InputImage]:
        if self.image is None or file is None:
            return read_inputs(None, self.mask)
        return read_inputs(file, mask_for(file, self.mask))

    def _controls(self, file: Path | None) -> tuple[ControlImage, ...]:
        return tuple(self._control(each, file) for each in self.controls)

    def _control(self, named: NamedControl, file: Path | None) -> ControlImage:
        place = named.place
        if place.is_dir():
            assert file is not None
            place = same_name(place, file, f"{named.kind} image")
        key = (named.kind, place)
        if key not in self._read:  # an image for all is decoded once
            self._read[key] = read_control(named.kind, place, named.scale)
        return self._read[key]


def with_images(
    prompts: Sequence[Prompt],
    image: Path | None,
    mask: str | None,
    controls: Sequence[str] = (),
    references: Sequence[str] = (),
) -> list[Prompt]:
    """Every prompt with every image; a prompt that has images of its own keeps them.

    Args:
        image: a file, or a folder of which every image is used, in the order of their names.
        mask: a file for all images, a folder with a mask of the same name for each, or `ALPHA`.
        controls: each `KIND=FILE`, a folder in place of the file likewise, and with or without `:SCALE`.
        references: each as of `parse_reference`.

    Raises:
        UserError: as `GivenImages.rows`, `parse_controls` and `parse_reference`.
    """
    if image is None and mask is None and not controls and not references:
        return list(prompts)
    shown = tuple(map(parse_reference, references))
    rows = GivenImages(image, mask, parse_controls(controls)).rows()
    paired: list[Prompt] = []
    for prompt in prompts:
        own = bool(prompt.inputs or prompt.controls)
        paired += (
            [prompt] if own else [replace(prompt, inputs=one, controls=two + shown) for one, two in rows]
        )
    return paired


def controls_of(given: Mapping[str, Any], folder: Path) -> tuple[ControlImage, ...]:
    """The control and reference images of a prompt in a file, each written as on the command line, or a list of them.

    Raises:
        UserError: one is neither text nor a list, or as `parse_controls`, `read_control` and `parse_reference`.
    """
    named = parse_controls(_texts(given, "control", "canny=edges.png:0.8"), folder)
    maps = tuple(read_control(each.kind, each.place, each.scale) for each in named)
    texts = _texts(given, "reference", "photo.png:0.6")
    return maps + tuple(parse_reference(text, folder) for text in texts)


def _texts(given: Mapping[str, Any], key: str, example: str) -> list[str]:
    value = given.get(key) or []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{key} is {value!r}", f'it must be such as "{example}", or a list of these')
    return texts


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
    return same_name(Path(mask), image, "mask")


def same_name(folder: Path, image: Path, what: str) -> Path:
    """The file in a folder with the name of an image, whatever its suffix.

    Raises:
        UserError: there is none, or there are several.
    """
    found = [file for file in image_files(folder) if file.stem == image.stem]
    if len(found) != 1:
        said = f"{folder} has no {what}" if not found else f"{folder} has several {what}s"
        raise UserError(f"{said} for {image.name}", f"put one there as {image.stem}.png")
    return found[0]
