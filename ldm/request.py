"""What is asked of a model: the settings of one call, completed from the model's defaults and checked."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError, unknown_name
from ldm.model_folder import Defaults
from ldm.scheduler_names import SCHEDULERS
from ldm.types import MAX_PROMPT_CHUNKS, Step
from ldm.version import __version__

LARGEST_SEED = 2**63 - 1

OnStep = Callable[[int, int, Step, Tensor], None]
"""Called after every sampling step with (steps done, steps in all, the step, latents [B, C, h, w])."""


class LdmWarning(UserWarning):
    """Something to know of a picture that is made all the same."""


@dataclass(frozen=True)
class Request:
    """The settings that all pictures of one call share; height and width in pixels."""

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    scheduler: str
    karras: bool
    height: int
    width: int
    max_prompt_chunks: int

    def picture_settings(self, prompt: str, seed: int) -> dict[str, Any]:
        """The settings of one picture, under the names of `Pipeline.generate`."""
        return {"prompt": prompt, **asdict(self), "seed": seed}


def program_settings(dtype: torch.dtype) -> dict[str, Any]:
    """What made a picture: the number format, and the versions of the programs."""
    versions = {"torch": str(torch.__version__)} | {
        name: version(name) for name in ("diffusers", "transformers")
    }
    return {"dtype": str(dtype).removeprefix("torch."), "versions": versions, "ldm_version": __version__}


def complete_request(defaults: Defaults, *, multiple: int, latents: Tensor | None, **given: Any) -> Request:
    """A request in which every None is filled in from the defaults, and the size fits the model.

    Args:
        multiple: height and width are rounded to multiples of it, in pixels.
        latents: initial noise [N, C, h, w]; it sets the size where none is given.
        given: the fields of `Request`, None for what the user left open.

    Raises:
        UserError: a value is out of range, or the scheduler is unknown.

    Warns:
        LdmWarning: a size is rounded.
    """
    for axis, name in enumerate(("height", "width"), start=2):
        if given[name] is None and latents is not None:
            given[name] = latents.shape[axis] * multiple
    values = {key: getattr(defaults, key) if value is None else value for key, value in given.items()}
    for name in ("height", "width"):
        values[name] = _round_size(name, values[name], multiple)
    _check_ranges(values)
    return Request(**values)


def _round_size(name: str, size: int, multiple: int) -> int:
    if size < 1:
        raise UserError(f"{name} is {size}", "it must be at least 1 pixel")
    rounded = max(1, math.floor(size / multiple + 0.5)) * multiple
    if rounded != size:
        message = f"{name} {size} is rounded to {rounded}: this model makes multiples of {multiple} pixels"
        warnings.warn(LdmWarning(message), stacklevel=5)
    return rounded


def _check_ranges(values: dict[str, Any]) -> None:
    if values["scheduler"] not in SCHEDULERS:
        raise unknown_name("scheduler", values["scheduler"], SCHEDULERS)
    if values["num_inference_steps"] < 1:
        raise UserError(f"num_inference_steps is {values['num_inference_steps']}", "it must be at least 1")
    if not math.isfinite(values["guidance_scale"]):
        raise UserError(f"guidance_scale is {values['guidance_scale']}", "it must be a finite number")
    if not 1 <= values["max_prompt_chunks"] <= MAX_PROMPT_CHUNKS:
        raise UserError(
            f"max_prompt_chunks is {values['max_prompt_chunks']}", f"it must be 1 to {MAX_PROMPT_CHUNKS}"
        )
    if not 0 <= values["guidance_rescale"] <= 1:
        raise UserError(f"guidance_rescale is {values['guidance_rescale']}", "it must be 0 to 1")


def check_rows(prompts: Sequence[str], *, seed: int, num_images: int, batch_size: int) -> None:
    """Check what says how many pictures are made, and with which seeds.

    Raises:
        UserError: naming the value that is out of range.
    """
    if not prompts:
        raise UserError("no prompt", "give at least one; an empty one is allowed")
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}", "it must be at least 1")
    if seed < 0 or seed + num_images - 1 > LARGEST_SEED:
        raise UserError(f"seed is {seed}", f"seed and seed + num_images - 1 must be 0 to {LARGEST_SEED}")


def batch_rows(num_chunks: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut rows into batches of at most `batch_size` that share one count of prompt chunks, by their first row.

    Rows of different counts never meet: the shorter one would have to be padded, which changes its picture.

    Args:
        num_chunks: of each row.
    """
    alike: dict[int, list[int]] = {}
    for row, count in enumerate(num_chunks):
        alike.setdefault(count, []).append(row)
    return [rows[i : i + batch_size] for rows in alike.values() for i in range(0, len(rows), batch_size)]


def count_on(on_step: OnStep | None, index: int, num_batches: int) -> OnStep | None:
    """The callback for batch `index` of several: it counts the steps of all."""
    if on_step is None:
        return None

    def report(done: int, total: int, step: Step, latents: Tensor) -> None:
        on_step(index * total + done, num_batches * total, step, latents)

    return report


def warn_cut_off(prompts: Sequence[str], left_out: Callable[[str], str]) -> None:
    """Say of each prompt which of its words are left out; on behalf of the caller of `Pipeline.generate`."""
    for words in filter(None, map(left_out, dict.fromkeys(prompts))):
        message = f"the prompt is too long for this model, left out: {words!r}"
        warnings.warn(LdmWarning(message), stacklevel=4)


def check_latents(latents: Tensor, shape: tuple[int, int, int, int]) -> None:
    """Check that the initial noise given fits the pictures asked for.

    Raises:
        UserError: its shape is another one.
    """
    if tuple(latents.shape) != shape:
        raise UserError(f"latents have shape {list(latents.shape)}", f"here it must be {list(shape)}")
