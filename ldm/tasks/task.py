"""What a task is: the images it takes besides the prompt, and how they reach the denoiser.

Axis letters: B batch, C latent channels, K added channels, H W pixels, h w latent size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldm.types import Conditioning

Encode = Callable[[Tensor], Tensor]
"""Pixel values [B, 3, H, W] in [-1, 1] -> the mean of the autoencoder's posterior, scaled: [B, C, h, w]."""


@dataclass(frozen=True)
class Start:
    """Where sampling starts, and what it leaves alone.

    Attributes:
        image: the named image whose noised latents sampling starts from; None starts from pure noise.
        strength: the default share of the noise levels that is sampled, above 0 and up to 1, which is all of them.
        mask: the named image that is white where `image` may change. Everywhere else the latents of `image`, noised to
            the current level, are put back after each step. None lets all of it change.
    """

    image: str | None = None
    strength: float = 1.0
    mask: str | None = None


FROM_NOISE = Start()


class Task(Protocol):
    """One way of using a denoiser. A task is a file in `ldm/tasks/` and an entry in its registry.

    A sample's own image, `image`, is what the denoiser learns to make; all others have names such as `source`, `mask`
    or `control`.
    """

    @property
    def name(self) -> str:
        """What settings and commands call it, such as `text-to-image`."""
        ...

    @property
    def latent_images(self) -> tuple[str, ...]:
        """The named images whose latents `training_conditioning` needs."""
        ...

    @property
    def pixel_images(self) -> tuple[str, ...]:
        """The named images whose pixel values `training_conditioning` needs."""
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
            latents: of each of `latent_images`, [B, C, h, w]; what `Encode` gives.
            pixel_values: of each of `pixel_images`, [B, 3, H, W] in [-1, 1].
        """
        ...

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """What the denoiser is told when images are generated.

        Args:
            prompt: the encoded prompts, B rows.
            images: the images given to `generate` by name, [B, 3, H, W] in [-1, 1].

        Raises:
            UserError: an image that the task needs is missing.
        """
        ...


def image_names(task: Task) -> tuple[str, ...]:
    """The named images that each training sample needs besides its own, each once."""
    return tuple(dict.fromkeys((*task.latent_images, *task.pixel_images)))
