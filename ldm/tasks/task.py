"""What a task is: the images it takes besides the prompt, and how they reach the denoiser.

Axis letters: B batch, C latent channels, K added channels, H W pixels, h w latent size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldm.data.sample import TaskInputs
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning

Encode = Callable[[Tensor], Tensor]
"""Pixel values [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w], see `input_latents`."""


@dataclass(frozen=True)
class Start:
    """Where sampling starts, and what it leaves alone.

    Attributes:
        image: the named image whose noised latents sampling starts from; None starts from pure noise.
        strength: the default share of the sampling steps that is run, from 0, which is none, to 1, which is all.
        mask: the named image that is white where `image` may change. Everywhere else the latents of `image`, noised to
            the current level, are put back after each step. None lets all of it change.
    """

    image: str | None = None
    strength: float = 1.0
    mask: str | None = None


FROM_NOISE = Start()


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
    def start(self) -> Start:
        """What it asks of the sampler."""
        ...

    @property
    def pipeline_class(self) -> str:
        """The diffusers pipeline that a trained model is exported to."""
        ...

    def concat_channels(self, latent_channels: int) -> int:
        """K, the channels that are appended to the noisy latents: the UNet's input has C + K, its output C."""
        ...

    def training_conditioning(
        self, prompt: Conditioning, latents: Mapping[str, Tensor], pixel_values: Mapping[str, Tensor]
    ) -> Conditioning:
        """What the denoiser is told about a training batch.

        Args:
            prompt: the encoded captions, B rows.
            latents: of the encoded `inputs` by name, [B, C, h, w].
            pixel_values: of the other `inputs` by name, [B, 1 or 3, H, W] in the range of their kind.
        """
        ...

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """What the denoiser is told when images are generated.

        Args:
            prompt: the encoded prompts, B rows.
            images: the images given to `generate` by name, [B, 3, H, W] in [-1, 1].
            encode: of `encoder_for`.

        Raises:
            UserError: an image that the task needs is missing.
        """
        ...


def images_for(task: Task) -> tuple[str, ...]:
    """The names of the images that `generate` must be given for a task."""
    names = (task.start.image, task.start.mask, *task.inputs.further_images)
    return tuple(dict.fromkeys(name for name in names if name is not None))


def input_latents(task: Task, autoencoder: KLAutoencoder, moments: Tensor) -> Tensor:
    """The latents of an image that the task needs: the mean of the posterior, scaled if the task wants it.

    Args:
        moments: of `KLAutoencoder.encode`, [B, 2C, h, w].
    """
    mean = moments.chunk(2, dim=1)[0]
    return autoencoder.scale(mean) if task.scales_inputs else mean


def encoder_for(task: Task, autoencoder: KLAutoencoder) -> Encode:
    """Encodes images for `Task.generation_conditioning` as they were encoded in training."""
    return lambda pixel_values: input_latents(task, autoencoder, autoencoder.encode(pixel_values))
