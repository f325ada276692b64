"""Text to image: the prompt is all that the denoiser is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ldm.config import Settings
from ldm.data.sample import NO_INPUTS, TaskInputs
from ldm.diffusion.guidance import NO_INPUTS as NO_GUIDANCE_INPUTS
from ldm.diffusion.guidance import GuidanceInputs
from ldm.models.generation_settings import GenerationSettings
from ldm.tasks.guiding import guided_by
from ldm.tasks.task import FROM_NOISE, Encode, Start, Task, TrainingInputs, with_prompt
from ldm.types import Conditioning, Denoiser

if TYPE_CHECKING:
    from ldm.models.parts import ModelParts


@dataclass(frozen=True)
class TextToImage:
    """Images from prompts alone."""

    name: str = "text-to-image"
    trained_as: str = "text-to-image"
    inputs: TaskInputs = NO_INPUTS
    scales_inputs: bool = True
    encodes_in_training: bool = False
    trains_controlnet: bool = False
    can_be_trained: bool = True
    own_control: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    start: Start = FROM_NOISE
    num_class_labels: int = 0
    enlarges: bool = False
    in_windows: bool = False

    def configured(self, options: Settings | None) -> "Task":
        """The task itself: nothing is set."""
        return self

    def for_model(self, parts: "ModelParts") -> "Task":
        """The task itself: it is the same with all models."""
        return self

    def completed(self, settings: GenerationSettings, given: GenerationSettings) -> GenerationSettings:
        """The settings as they are."""
        return settings

    def prepared(
        self, images: Mapping[str, Tensor], settings: GenerationSettings, seeds: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The images as they are."""
        return images

    def concat_channels(self, latent_channels: int) -> int:
        """None are added."""
        return 0

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """The prompt as it is."""
        return prompt

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The prompt as it is."""
        return prompt

    def guided(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        negative: Conditioning,
        settings: GenerationSettings,
        inputs: GuidanceInputs = NO_GUIDANCE_INPUTS,
    ) -> Denoiser:
        """Guidance with the negative prompt; the images are the same for it."""
        joined = inputs.composition.map(lambda prompt: with_prompt(conditioning, prompt))
        inputs = replace(inputs, composition=joined)
        return guided_by(denoiser, with_prompt(conditioning, negative), settings, inputs)
