"""Enlarging: an image is made that a low-resolution image is the reduced form of.

As in Stable Diffusion's 4x upscaler, the latents have the grid of the low-resolution image, so the factor is the
autoencoder's: 4 with 4 x 4 pixels per latent, 2 with 2 x 2. The low-resolution image gets noise of its own schedule
(`ldm.models.low_resolution`), whose level is the class label; the timestep is that of the latents, as everywhere.

Axis letters: B batch, H W pixels, h w latent size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm import noise
from ldm.data.sample import MAIN_INPUT, SampleDraw, TaskInputs
from ldm.diffusion.path import DDPMPath
from ldm.errors import UserError
from ldm.io.images import image_to_tensor, resize_and_crop, tensor_to_images
from ldm.models.generation_settings import GenerationSettings
from ldm.models.low_resolution import NUM_LEVELS, LowResolutionNoise
from ldm.tasks.task import Encode, Task, TrainingInputs
from ldm.tasks.text_to_image import TextToImage
from ldm.types import Conditioning

if TYPE_CHECKING:
    from ldm.models.parts import ModelParts

IMAGE, NOISE, LEVEL = "low_resolution", "low_resolution_noise", "noise_level"
"""The low-resolution image, its noise and the level of it, by the names that they have in a batch."""


def reduce_image(pixel_values: Tensor, draw: SampleDraw, *, factor: int) -> dict[str, Any]:
    """An image [3, H, W] reduced by `factor` with the filter that all images are resized with, and draws for its noise.

    Returns:
        The image and its standard normal noise, [3, H / factor, W / factor], and the level's position in [0, 1).
    """
    (image,) = tensor_to_images(pixel_values[None])
    small = image_to_tensor(resize_and_crop(image, image.height // factor, image.width // factor))
    drawn = torch.randn(small.shape, generator=noise.generator_for(*draw, "low-resolution noise"))
    return {IMAGE: small, NOISE: drawn, LEVEL: noise.uniform(*draw, "low-resolution level")}


def low_resolution_seed(seed: int) -> int:
    """The seed of the generator that draws the low-resolution noise of an image with a seed."""
    return noise.key_to_seed(seed, "low-resolution noise")


def noise_of_seeds(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape] for the low-resolution images of B seeds, unrelated to that of the latents."""
    generators = noise.image_generators([low_resolution_seed(seed) for seed in seeds])
    return noise.normal_per_image(generators, shape)


@dataclass(frozen=True)
class Upscale(TextToImage):
    """The low-resolution image is appended to the noisy latents in RGB, as it is given with `--image`.

    Attributes:
        factor: how many times an image is enlarged; 1 before `for_model`.
        low_resolution: the noise of the low-resolution image.
    """

    name: str = "upscale"
    trained_as: str = "upscale"
    inputs: TaskInputs = TaskInputs(images=(MAIN_INPUT,))  # noqa: RUF009  (frozen)
    given: Mapping[str, str] = field(default_factory=lambda: {"image": IMAGE})
    num_class_labels: int = NUM_LEVELS
    enlarges: bool = True
    in_windows: bool = True
    factor: int = 1
    low_resolution: LowResolutionNoise = LowResolutionNoise()  # noqa: RUF009  (frozen)

    @cached_property
    def path(self) -> DDPMPath:
        """The schedule of that noise."""
        return self.low_resolution.path()

    def for_model(self, parts: "ModelParts") -> Task:
        """With the model's factor and schedule."""
        factor = parts.autoencoder.pixels_per_latent
        low_resolution = parts.low_resolution or self.low_resolution
        inputs = replace(self.inputs, derive=partial(reduce_image, factor=factor))
        return replace(self, inputs=inputs, factor=factor, low_resolution=low_resolution)

    def completed(self, settings: GenerationSettings, given: GenerationSettings) -> GenerationSettings:
        """With the factor, and by default no higher noise level than the model takes.

        Raises:
            UserError: another factor is asked for, or a noise level above those that the model knows.
        """
        most, level = self.low_resolution.max_noise_level, settings.noise_level
        if level > most and "noise_level" in given.given():
            raise UserError(f"noise_level is {level}", f"this model takes 0 to {most}")
        if settings.upscale not in (0, self.factor):
            hint = f"this model enlarges {self.factor} times: leave it out, or give another --model"
            raise UserError(f"upscale is {settings.upscale}", hint)
        return settings.model_copy(update={"upscale": self.factor, "noise_level": min(level, most)})

    def concat_channels(self, latent_channels: int) -> int:
        """Red, green and blue."""
        return 3

    def training_conditioning(self, prompt: Conditioning, inputs: TrainingInputs) -> Conditioning:
        """Each sample has a level below the highest one, all equally likely."""
        count = self.low_resolution.max_noise_level
        levels = (inputs.drawn[LEVEL] * count).long().clamp(max=count - 1)
        noisy = self.path.add_noise(inputs.drawn[IMAGE], inputs.drawn[NOISE], levels)
        return replace(prompt, concat=noisy, class_labels=levels)

    def prepared(
        self, images: Mapping[str, Tensor], settings: GenerationSettings, seeds: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """With noise of the level that the settings say, each image's from its own seed."""
        image = images[IMAGE]
        levels = torch.full((len(image),), settings.noise_level, device=image.device)
        drawn = noise_of_seeds(seeds, image.shape[1:]).to(image.device)
        return {IMAGE: self.path.add_noise(image, drawn, levels), LEVEL: levels}

    def generation_conditioning(
        self, prompt: Conditioning, images: Mapping[str, Tensor], encode: Encode
    ) -> Conditioning:
        """The noised image, and its level."""
        return replace(prompt, concat=images[IMAGE], class_labels=images[LEVEL])
