"""Images over one or two settings: every value of the one with every value of the other, in a labelled sheet.

made, sheet = make_grid(pipeline, "a red apple", Axis("guidance_scale", (2, 4, 8)), Axis("seed", (1, 2, 3)))
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_origin

import torch
from PIL import Image

from ldm.errors import UserError, unknown_name
from ldm.io.contact_sheet import contact_sheet
from ldm.models.generation_settings import GenerationSettings
from ldm.models.settings_reading import parse_settings
from ldm.pipeline.batches import Prompt, list_images
from ldm.pipeline.settings import Generation, read_prompts

if TYPE_CHECKING:
    from ldm.pipeline.pipeline import Pipeline

LONGEST_LABEL = 30
"""Characters of a prompt beside its rows."""


@dataclass(frozen=True)
class Axis:
    """A setting and its values along one side of a grid."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """Such as `seed 1`."""
        return [f"{self.name} {_shown(value)}" for value in self.values]

    def settings(self, kind: type[GenerationSettings] = GenerationSettings) -> list[GenerationSettings]:
        """The setting with each of the values.

        Raises:
            UserError: there is no such setting, no value, or one that is out of range.
        """
        able = [name for name in kind.model_fields if name not in ("num_images", "num_frames")]
        if self.name not in able:
            raise unknown_name("setting of a grid", self.name, able)
        if not self.values:
            raise UserError(f"the grid has no values of {self.name}", f"write {self.name}=1,2,3")
        return [parse_settings({self.name: value}, kind) for value in self.values]


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_axis(text: str, kind: type[GenerationSettings] = GenerationSettings) -> Axis:
    """An axis as the command line has it: `guidance_scale=2,4,8`; hyphens in the name are underscores.

    Raises:
        UserError: as `Axis.settings`, or there is no `=`.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise UserError(
            f"the grid's axis is {text!r}", "write a setting and its values: guidance_scale=2,4,8"
        )
    given = [value.strip() for value in values.split(",") if value.strip()]
    axis = Axis(name, tuple(_value(kind, name, value) for value in given))
    axis.settings(kind)  # a wrong value is found before anything is loaded
    return axis


def _value(kind: type[GenerationSettings], name: str, text: str) -> Any:
    """The value of a setting as its type wants it; text that is none is left for the check of the settings."""
    wanted: Any = kind.model_fields[name].annotation if name in kind.model_fields else str
    try:
        if get_origin(wanted) is tuple:
            return tuple(float(part) for part in text.split())
        if wanted is bool:
            return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[
                text.lower()
            ]
        return wanted(text) if wanted in (int, float) else text
    except (ValueError, KeyError):
        return text


def over_grid(prompts: Sequence[Prompt], x: Axis | None, y: Axis | None) -> list[Prompt]:
    """Every prompt with every pair of values, row by row; they win over the prompts' own settings."""
    columns, rows = (axis.settings() if axis else [GenerationSettings()] for axis in (x, y))
    return [
        replace(prompt, settings=column.over(row).over(prompt.settings))
        for prompt in prompts
        for row in rows
        for column in columns
    ]


def grid_sheet(
    images: Sequence[Image.Image], prompts: Sequence[str], x: Axis | None, y: Axis | None
) -> Image.Image:
    """The sheet of the images that `over_grid` asks for.

    Args:
        images: in order; with several in a cell, each has a row of its own.
        prompts: before `over_grid`; several are named beside their rows.
    """
    num_columns = len(x.values) if x else 1
    rows = [(prompt, label) for prompt in prompts for label in (y.labels if y else [""])]
    per_cell = len(images) // (len(rows) * num_columns)
    cells, labels = [], []
    for index, (prompt, label) in enumerate(rows):
        first = index * num_columns * per_cell
        for repeat in range(per_cell):
            cells += [images[first + column * per_cell + repeat] for column in range(num_columns)]
            labels.append(f"{_short(prompt) if len(prompts) > 1 else ''} {label}".strip())
    return contact_sheet(cells, x.labels if x else [""], labels)


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST_LABEL else prompt[:LONGEST_LABEL] + "..."


@torch.no_grad()
def make_grid(
    pipeline: "Pipeline",
    prompts: str | Sequence[str],
    x: Axis | None = None,
    y: Axis | None = None,
    *,
    batch_size: int = 8,
    **given: Any,
) -> tuple[Generation, Image.Image]:
    """Make the images of a grid, and its sheet; each image is the one that its settings give alone, within 1/255.

    The latents returned are empty if the images have different sizes.

    Args:
        given: other settings, as of `Pipeline.generate`.

    Raises:
        UserError: a setting or a value is wrong.
    """
    asked = read_prompts(prompts, None, parse_settings(given, GenerationSettings))
    requests = list_images(over_grid(asked, x, y))
    made = sorted(
        pipeline.make_images([requests], batch_size=batch_size), key=lambda each: each.request.number
    )
    images = [each.image for each in made]
    sheet = grid_sheet(images, [each.prompt for each in asked], x, y)
    latents = [each.latents for each in made]
    same = torch.stack(latents) if len({each.shape for each in latents}) == 1 else torch.empty(0)
    return Generation(images, same, [each.record for each in made]), sheet
