"""What a task is: the images it takes besides the prompt, and how they reach the denoiser.

Axis letters: B batch, C latent channels, K added channels, H W pixels, h w latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ldm.config import Settings
from ldm.data.sample import TaskInputs
from ldm.diffusion.guidance import NO_INPUTS, GuidanceInputs
from ldm.models.generation_settings import GenerationSettings
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning, Denoiser

if TYPE_CHECKING:
    from ldm.models.parts import ModelParts

Encode = Callable[[Tensor], Tensor]
"""Pixel values [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w], see `input_latents`."""


@dataclass(frozen=True)
class Start:
    """Where sampling starts, and what it leaves alone.

    Attributes:
        image: the image given whose noised latents sampling starts from; None starts from pure noise.
        strength: the default share of the sampling steps that is run, from 0, which is none, to 1, which is all.
        mask: the image given that is white where `image` may change. All other pixels are those of `image`. None lets
            all of it change.
        blends: whether the latents of `image`, noised to the current level, are put back outside the mask after each
            step, for a model that does not know the mask. With strength 1 such sampling starts from pure noise.
    """

    image: str | None = None
    strength: float = 1.0
    mask: str | None = None
    blends: bool = False


FROM_NOISE = Start()


@dataclass(frozen=True)
class TrainingInputs:
    """What a training batch has for a task besides its captions.

    Attributes:
        encode: for pixel values that are not encoded yet, without gradients.
        latents: of the encoded `TaskInputs.images` by name, [B, C, h, w], and of a cached `TaskInputs.drawn_image`.
        pixel_values: of the other images by name, [B, 1 or 3, H, W] in the range of their kind.
        drawn: what `TaskInputs.draw` and `derive` returned for each sample, stacked.
        training: false when the loss on held-out images is measured, which drops no condition.
    """

    encode: Encode
    latents: Mapping[str, Tensor] = field(default_factory=dict)
    pixel_values: Mapping[str, Tensor] = field(default_factory=dict)
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    training: bool = True


class Task(Protocol):
    """One way of using a denoiser. A task is a file in `ldm/tasks/` and an entry in its registry.

    The main image of a sample is what the denoiser learns to make; others have names such as `source`, `mask` or
    `control`.
    """

    @property
    def name(self) -> str:
        """What settings and commands call it, such as `text-to-image`."""
        ...

    @property
    def trained_as(self) -> str:
        """The task that a model must be trained for: itself, or another one whose models can do this as well."""
        ...

    @property
    def inputs(self) -> TaskInputs:
        """What each training sample must have besides its captions and its main image."""
        ...

    @property
    def scales_inputs(self) -> bool:
        """Whether latents of `inputs` are scaled like those of the main image; InstructPix2Pix takes them unscaled."""
        ...

    @property
    def encodes_in_training(self) -> bool:
        """Whether `training_conditioning` encodes images that are not cached, so that the autoencoder must stay."""
        ...

    @property
    def trains_controlnet(self) -> bool:
        """Whether training makes a ControlNet beside the denoiser, which stays as it is."""
        ...

    @property
    def can_be_trained(self) -> bool:
        """Whether the training program makes models for it; others are only loaded."""
        ...

    @property
    def own_control(self) -> str:
        """The kind of control image that the denoiser itself takes, without a ControlNet; empty for none."""
        ...

    @property
    def given(self) -> Mapping[str, str]:
        """The images that `generate` is given, such as `image`, and what `generation_conditioning` calls each."""
        ...

    @property
    def start(self) -> Start:
        """What it asks of the sampler."""
        ...

    @property
    def num_class_labels(self) -> int:
        """The class labels that the UNet has a table for; 0 for a task without."""
        ...

    @property
    def enlarges(self) -> bool:
        """Whether the image given has one pixel for each latent, so that the autoencoder enlarges it."""
        ...

    @property
    def in_windows(self) -> bool:
        """Whether a large image may be made in overlapping windows; what is told of it must lie in its channels."""
        ...

    def configured(self, options: Settings | None) -> "Task":
        """The task as the training configuration sets it, in the section with the task's name."""
        ...

    def for_model(self, parts: "ModelParts") -> "Task":
        """The task with what a model decides about it."""
        ...

    def completed(self, settings: GenerationSettings, given: GenerationSettings) -> GenerationSettings:
        """The settings of an image, none of them left open, with what the model decides.

        Args:
            given: what the user set.

        Raises:
            UserError: a setting does not fit the model.
        """
        ...

    def prepared(
        self, images: Mapping[str, Tensor], settings: GenerationSettings, seeds: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The images given, as `generation_conditioning` takes them, with what the settings say of them.

        Args:
            seeds: one for each image, from which any noise is drawn.
        """
        ...

    def concat_channels(self, latent_channels: int) -> int:
        """K, the channels that are appended to the noisy latents: the UNet's input has C + K, its output C."""
        ...

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """What the denoiser is told about a training batch.

        Args:
            prompt: the encoded captions, B rows.
        """
        ...

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """What the denoiser is told when images are generated.

        Args:
            prompt: the encoded prompts, B rows.
            images: the images given, by the names in `given`: masks [B, 1, H, W], 0 or 1, others [B, 3, H, W] in
                [-1, 1]; and what `prepared` adds.
            encode: of `encoder_for`.
        """
        ...

    def guided(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        negative: Conditioning,
        settings: GenerationSettings,
        inputs: GuidanceInputs = NO_INPUTS,
    ) -> Denoiser:
        """The denoiser with the guidance of the settings.

        Args:
            conditioning: of the prompts, from `generation_conditioning`.
            negative: the encoded negative prompt, one row.
            inputs: what else guidance uses; joined prompts have the text alone, B rows each.
        """
        ...


def input_latents(task: Task, autoencoder: KLAutoencoder, moments: Tensor) -> Tensor:
    """The latents of an image that the task needs: the mean of the posterior, scaled if the task wants it.

    Args:
        moments: of `KLAutoencoder.encode`, [B, 2C, h, w].
    """
    mean = moments.chunk(2, dim=1)[0]
    return autoencoder.scale(mean) if task.scales_inputs else mean


def encoder_for(task: Task, autoencoder: KLAutoencoder, moments_of: Encode | None = None) -> Encode:
    """Encodes images for `Task.generation_conditioning` as they were encoded in training.

    Args:
        moments_of: in place of `autoencoder.encode`.
    """
    encode = moments_of or autoencoder.encode
    return lambda pixel_values: input_latents(task, autoencoder, encode(pixel_values))


def with_prompt(conditioning: Conditioning, prompt: Conditioning) -> Conditioning:
    """The conditioning with text, sizes and image prompts of another one, whose single row is repeated for all B."""
    text = prompt.expand(len(conditioning))
    return replace(
        conditioning,
        prompt_embeds=text.prompt_embeds,
        pooled=text.pooled,
        attention_mask=text.attention_mask,
        time_ids=text.time_ids,
        image_embeds=text.image_embeds,
    )
