"""Editing by instruction: "make it blue" changes an image as said (InstructPix2Pix, Brooks et al. 2023).

A training sample has the edited image as its main image, the image before as `source_file_name`, and the instruction as
its caption (`data.caption_column: instruction`).

Axis letters: B batch, C latent channels, h w latent size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm.data.captions import dropout_draw
from ldm.data.sample import ImageInput, SampleDraw, TaskInputs
from ldm.diffusion.guidance import NEGATIVE, NO_INPUTS, GuidanceInputs, edit_guidance, guide
from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings
from ldm.tasks.task import Encode, TrainingInputs, with_prompt
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning, Denoiser

DROPPED_FROM, DROPPED_TO = 0.05, 0.15
"""Where the draw of caption dropout lies if the source is dropped. Captions are dropped below `captions.dropout`, so
with 0.1 there, 5 % of the samples lose the instruction, 5 % both and 5 % the source, as in the paper."""

NO_SOURCE = "no source"
"""The branch of guidance without instruction and source."""


def draw_drop(draw: SampleDraw, size: tuple[int, int]) -> dict[str, float]:
    """`drop_source`: 1 if the source is dropped, else 0."""
    return {"drop_source": float(DROPPED_FROM <= dropout_draw(draw) < DROPPED_TO)}


SOURCE = TaskInputs(images=(ImageInput("source", encoded=True),), draw=draw_drop)


@dataclass(frozen=True)
class Edit(TextToImage):
    """The latents of the source, unscaled, are added to the noisy ones as channels; a dropped source is zero."""

    name: str = "edit"
    trained_as: str = "edit"
    inputs: TaskInputs = SOURCE
    scales_inputs: bool = False
    given: Mapping[str, str] = field(default_factory=lambda: {"image": "source"})

    def concat_channels(self, latent_channels: int) -> int:
        """The latents of the source."""
        return latent_channels

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """The source, or zeros for a sample whose source is dropped."""
        source = inputs.latents["source"]
        if inputs.training:
            source = source * (1 - inputs.drawn["drop_source"].view(-1, 1, 1, 1))
        return replace(prompt, concat=source)

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The image given."""
        return replace(prompt, concat=encode(images["source"]))

    def guided(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        negative: Conditioning,
        settings: GenerationSettings,
        inputs: GuidanceInputs = NO_INPUTS,
    ) -> Denoiser:
        """Guidance towards the instruction and towards the source, each with its own scale.

        Raises:
            UserError: the settings ask for another guidance.
        """
        if settings.guidance != "cfg":
            raise UserError(
                f"guidance is {settings.guidance!r}, but edits have guidance of their own, with two scales",
                "leave guidance out",
            )
        text_scale, image_scale = settings.guidance_scale, settings.image_guidance_scale
        composition = inputs.composition.map(lambda prompt: with_prompt(conditioning, prompt))
        if text_scale == image_scale == 1 and composition.is_plain:
            return denoiser
        with_source = with_prompt(conditioning, negative)
        assert with_source.concat is not None
        branches = {
            NO_SOURCE: replace(with_source, concat=torch.zeros_like(with_source.concat)),
            NEGATIVE: with_source,
        }
        combine = edit_guidance(NO_SOURCE, text_scale, image_scale)
        return guide(denoiser, branches, combine, settings.guidance_interval, composition)
