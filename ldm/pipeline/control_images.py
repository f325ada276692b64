"""Control images given to `generate`: what identifies them, and how they become hints of the size that is made.

Axis letters: H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ldm.errors import UserError
from ldm.io.images import resize_and_crop
from ldm.models.control.hints import CANNY, HINT_KINDS, REFERENCE, check_kind
from ldm.models.control.ip_adapter import Scale
from ldm.models.parts import ModelParts
from ldm.pipeline.input_images import GivenImage, InputImage, InputRecord, read_input, to_canvas
from ldm.tasks import Task

GivenControl = GivenImage | tuple[GivenImage, float]
"""A control image as a caller of `generate` names it: an image, alone or with its scale."""

GivenReference = GivenImage | tuple[GivenImage, float | Mapping[str, float]]
"""A reference image: alone, with its scale, or with scales of blocks by name."""

UNET_PARTS = ("down", "mid", "up")
EXTRA = "pip install 'open-ldm[control]', or give a map of edges: white on black"


class UsedControl(InputRecord):
    """What an image's record says of a control image and of the network that read it.

    Attributes:
        kind: of `HINT_KINDS`, or `REFERENCE`.
        blocks: the scales of blocks of the UNet by name, in place of `scale`, as the user wrote them.
        name: of the network, without a path; empty if the denoiser itself takes the image.
        network_hash: of the network's weights and configuration.
    """

    kind: str
    scale: float
    blocks: dict[str, float] = Field(default_factory=dict)
    name: str = ""
    network_hash: str = ""


@dataclass(frozen=True)
class ControlImage:
    """A control image, and how strongly it controls.

    Attributes:
        scale: of the residuals or of the attention; None leaves it open.
        blocks: for a reference image, the scales of blocks of the UNet such as `up.block_0`, 0 for all others.
    """

    kind: str
    image: InputImage
    scale: float | None = None
    blocks: tuple[tuple[str, float], ...] = ()

    @property
    def strength(self) -> tuple[str, float, tuple[tuple[str, float], ...]]:
        """What must be the same for images that are made together."""
        return self.kind, self.weight, self.blocks

    @property
    def weight(self) -> float:
        """The scale; 1 if it is left open."""
        return 1.0 if self.scale is None else float(self.scale)

    @property
    def sets_size(self) -> bool:
        """Whether images are made in its size, if none is given."""
        return self.kind in HINT_KINDS

    def hint(self, height: int, width: int, multiple: int, canny_thresholds: tuple[float, float]) -> Tensor:
        """[3, H, W] in [0, 1] on the canvas of `ldm.pipeline.input_images.canvas_size`.

        Raises:
            UserError: it has another shape than the image to make, or OpenCV is needed and not installed.
        """
        image = self.image.open()
        _check_shape(self.image, height, width, multiple)
        if self.kind == CANNY and not is_black_and_white(image):
            image = edges(_resized(image, height, width, Image.Resampling.LANCZOS), canny_thresholds)
        image = _resized(image, height, width, _filter_for(self.kind, image.height < height))
        values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return to_canvas(values, multiple)


def read_control(kind: str, given: Any, scale: float | None = None, *, name: str = "") -> ControlImage:
    """Decode a control image to find out what identifies it.

    Raises:
        UserError: the kind is unknown, the scale is out of range, or as `read_input`.
    """
    if scale is not None:
        check_scale(scale, name or f"control {kind}")
    check_kind(kind)
    return ControlImage(kind, read_input(given, "photo", name=name or f"control {kind}"), scale)


def read_reference(
    given: Any,
    scale: float | None = None,
    blocks: Mapping[str, float] | None = None,
    *,
    name: str = REFERENCE,
) -> ControlImage:
    """Decode a reference image to find out what identifies it.

    Raises:
        UserError: a scale is out of range, a block is no part of a UNet, or as `read_input`.
    """
    for each in (scale, *(blocks or {}).values()):
        if each is not None:
            check_scale(each, name)
    for block in blocks or ():
        if block.partition(".")[0] not in UNET_PARTS:
            raise UserError(
                f"{name} has a scale for {block!r}", "name blocks as down.block_1, mid or up.block_0"
            )
    image = read_input(given, "photo", name=name)
    return ControlImage(REFERENCE, image, scale, tuple(sorted((blocks or {}).items())))


def scale_tree(control: ControlImage) -> Scale:
    """The scales of a reference image as diffusers takes them."""
    if not control.blocks:
        return control.weight
    tree: dict[str, Any] = {}
    for name, scale in control.blocks:
        part, _, block = name.partition(".")
        tree[part] = {**tree.get(part, {}), block: scale} if block else scale
    return tree


def list_references(given: Any) -> list[ControlImage]:
    """The reference images of a call: an image or a list of them, each alone or with its scale or scales.

    Raises:
        UserError: as `read_reference`.
    """
    listed = [] if given is None else given if isinstance(given, list) else [given]
    found = []
    for number, each in enumerate(listed, start=1):
        image, scale = each if isinstance(each, tuple) and len(each) == 2 else (each, None)
        name = REFERENCE if len(listed) == 1 else f"{REFERENCE} {number}"
        by_block = isinstance(scale, Mapping)
        found.append(
            read_reference(image, None if by_block else scale, scale if by_block else None, name=name)
        )
    return found


def check_scale(scale: Any, name: str) -> None:
    """Refuse a scale that is no finite number of at least 0.

    Raises:
        UserError: it is not.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise UserError(
            f"the scale of {name} is {scale!r}", "it must be a number of at least 0; 1 is as trained"
        )


def pair_controls(given: Any, num_prompts: int) -> list[tuple[ControlImage, ...]]:
    """The control images of each prompt.

    Args:
        given: by kind, an image for all prompts or a list with one for each; each alone or with its scale. None: none.

    Raises:
        UserError: `given` is something else, a list has another length, or as `read_control`.
    """
    if given is None:
        return [()] * num_prompts
    if not isinstance(given, Mapping):
        what = f"control is a {type(given).__name__}"
        raise UserError(what, 'give images by kind, such as {"depth": "depth.png"}')
    columns = [_column(str(kind), images, num_prompts) for kind, images in given.items()]
    return [tuple(row) for row in zip(*columns, strict=True)] if columns else [()] * num_prompts


def _column(kind: str, images: Any, num_prompts: int) -> list[ControlImage]:
    """The control images of one kind, one for each prompt; an image for all is decoded once."""
    if not isinstance(images, list):
        return [_with_own_scale(kind, images)] * num_prompts
    if len(images) != num_prompts:
        what = f"{len(images)} control images of kind {kind} for {num_prompts} prompts"
        raise UserError(what, "give one for all, or one for each prompt")
    return [_with_own_scale(kind, image, f" {number}") for number, image in enumerate(images, start=1)]


def _with_own_scale(kind: str, given: Any, number: str = "") -> ControlImage:
    image, scale = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    return read_control(kind, image, scale, name=f"control {kind}{number}")


def check_controls(
    controls: Sequence[ControlImage], parts: ModelParts, task: Task, *, has_engine: bool
) -> None:
    """Refuse control images that the model cannot use, and a task without its own control image.

    Args:
        has_engine: whether something else than torch runs the denoiser.

    Raises:
        UserError: there is no network for one, or the engine takes no residuals.
    """
    if task.own_control not in ("", *(control.kind for control in controls)):
        own = task.own_control
        raise UserError(
            f"a model trained for {parts.task} needs a {own} map", f"give it: --control {own}=FILE"
        )
    for control in controls:
        if control.kind == REFERENCE and parts.image_prompts is None:
            raise UserError("there is no IP-Adapter for reference images", "name its file: --ip-adapter FILE")
        if control.kind == task.own_control and control.weight != 1:
            what = f"the scale of {control.image.name} is {control.weight:g}, and no ControlNet reads it"
            raise UserError(what, "leave the scale out")
        if control.kind not in (REFERENCE, task.own_control, *parts.controls):
            kind = control.kind
            raise UserError(
                f"there is no network for control images of kind {kind}",
                f"name the folder of a ControlNet: --controlnet {kind}=FOLDER",
            )
    if (count := sum(control.kind == REFERENCE for control in controls)) and parts.image_prompts:
        parts.image_prompts.adapters_for(count)
    if controls and has_engine:
        raise UserError("control images need the engine torch", "leave --engine out")


def used_controls(controls: Sequence[ControlImage], parts: ModelParts, task: Task) -> tuple[UsedControl, ...]:
    """What an image's record says of its control images."""
    references = [control for control in controls if control.kind == REFERENCE]
    adapters = iter(parts.image_prompts.adapters_for(len(references)) if parts.image_prompts else ())
    found = []
    for control in controls:
        own = {"kind": control.kind, "scale": control.weight, "blocks": dict(control.blocks)}
        named = {}
        if control.kind != task.own_control:
            network = next(adapters) if control.kind == REFERENCE else parts.controls[control.kind]
            named = {"name": network.name, "network_hash": network.sha256}
        found.append(UsedControl(**control.image.record.model_dump(), **own, **named))
    return tuple(found)


def edges(image: Image.Image, thresholds: tuple[float, float]) -> Image.Image:
    """The edges of an RGB image, white on black (Canny 1986), as OpenCV finds them.

    Args:
        thresholds: of the gradient, low and high.

    Raises:
        UserError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("finding edges needs OpenCV", EXTRA) from None
    found = cv2.Canny(np.asarray(image), *thresholds)
    return Image.fromarray(found).convert("RGB")


def is_black_and_white(image: Image.Image) -> bool:
    """Whether all pixels are black or white, as in a map of edges."""
    pixels = np.asarray(image)
    return bool(np.isin(pixels, (0, 255)).all() and (pixels == pixels[..., :1]).all())


def _filter_for(kind: str, is_enlarged: bool) -> Image.Resampling:
    resampling = HINT_KINDS[kind].resampling
    if resampling == "nearest":
        return Image.Resampling.NEAREST
    return Image.Resampling.BILINEAR if resampling == "smooth" and is_enlarged else Image.Resampling.BOX


def _resized(image: Image.Image, height: int, width: int, resampling: Image.Resampling) -> Image.Image:
    if image.size == (width, height):
        return image
    return resize_and_crop(image, height, width, resampling=resampling)


def _check_shape(image: InputImage, height: int, width: int, multiple: int) -> None:
    """Refuse a map from which more than a latent would have to be cut off to cover the image.

    Raises:
        UserError: naming both sizes.
    """
    own = image.record
    scale = max(height / own.height, width / own.width)
    cut = max(own.height * scale - height, own.width * scale - width)
    if cut >= max(multiple, 2):
        raise UserError(
            f"{image.name} has {own.width} x {own.height} pixels, another shape than the image of {width} x {height}",
            "crop it to that shape, or leave --height and --width out",
        )
