"""Text to image: the prompt is all that the denoiser is told."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ldm.data.sample import NO_INPUTS, TaskInputs
from ldm.tasks.task import FROM_NOISE, Encode, Start
from ldm.types import Conditioning


@dataclass(frozen=True)
class TextToImage:
    """Images from prompts alone."""

    name: str = "text-to-image"
    trained_as: str = "text-to-image"
    inputs: TaskInputs = NO_INPUTS
    scales_inputs: bool = True
    start: Start = FROM_NOISE
    pipeline_class: str = "StableDiffusionPipeline"

    def concat_channels(self, latent_channels: int) -> int:
        """None are added."""
        return 0

    def training_conditioning(
        self, prompt: Conditioning, latents: Mapping[str, Tensor], pixel_values: Mapping[str, Tensor]
    ) -> Conditioning:
        """The prompt as it is."""
        return prompt

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The prompt as it is."""
        return prompt
