"""Inpainting: the white part of a mask is made anew to fit a prompt and the rest of the image."""

from dataclasses import dataclass

from ldm.tasks.task import Start
from ldm.tasks.text_to_image import TextToImage

IN_THE_MASK = Start(image="image", strength=1.0, mask="mask")


@dataclass(frozen=True)
class BlendedInpaint(TextToImage):
    """With a text-to-image model: the known latents are put back, noised, after every step."""

    name: str = "blended-inpaint"
    start: Start = IN_THE_MASK
    pipeline_class: str = "StableDiffusionInpaintPipeline"
