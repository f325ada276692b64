"""The parts of a model, by name, wherever they come from."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.io.json_files import shortened
from ldm.models.clip import ClipTextEncoder
from ldm.models.control.ip_adapter import ImagePrompts
from ldm.models.control.networks import ControlNetwork
from ldm.models.families.family import Family, Size, SizeConditions, Width
from ldm.models.families.registry import family_of
from ldm.models.generation_settings import TEXT_TO_IMAGE
from ldm.models.loading.component_files import check_tokens
from ldm.models.loading.folder import Defaults
from ldm.models.loading.trained_task import task_of_channels
from ldm.models.low_resolution import LowResolutionNoise
from ldm.models.setting_limits import MAX_SIZE_PX
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning


@dataclass
class ModelParts:
    """A model in its parts.

    Attributes:
        scheduler_config: the noise schedule and prediction type, a diffusers scheduler's configuration.
        task: that the model was trained for, by its name.
        low_resolution: the noise of an upscaler's low-resolution image; None for other models.
        controls: networks that control the denoiser by images, by the kind of image.
        image_prompts: IP-Adapters with their image encoder.
        others: components of the family that belong to none of the three modules, by name.
        settings: the family's `decisive_settings`.
    """

    denoiser: UNetDenoiser
    autoencoder: KLAutoencoder
    text_encoder: ClipTextEncoder
    scheduler_config: dict[str, Any]
    defaults: Defaults
    others: dict[str, Any] = field(default_factory=dict)
    task: str = TEXT_TO_IMAGE
    low_resolution: LowResolutionNoise | None = None
    controls: dict[str, ControlNetwork] = field(default_factory=dict)
    image_prompts: ImagePrompts | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The family that the configurations of these components belong to."""
        return family_of(self.configs())

    def encode(
        self,
        prompts: Sequence[str],
        num_chunks: int = 1,
        *,
        size: Size,
        original: Size | None = None,
        crop: Size = (0, 0),
    ) -> Conditioning:
        """What the denoiser is told of B prompts, and of the size where the family's UNet takes time ids.

        Args:
            size: of the images, height and width in pixels.
            original: before cropping; by default `size`.
            crop: top left corner of the crop.
        """
        said: Conditioning = self.text_encoder(prompts, num_chunks)
        return self.with_sizes(said, [SizeConditions(original or size, crop, size)])

    def with_sizes(self, said: Conditioning, sizes: Sequence[SizeConditions]) -> Conditioning:
        """The conditioning with time ids, where the family's UNet takes them.

        Args:
            said: B rows.
            sizes: of the B images, or of all of them one.
        """
        time_ids = self.family.time_ids
        if time_ids is None:
            return said
        numbers = torch.tensor([time_ids(each) for each in sizes], dtype=torch.float32)
        return replace(said, time_ids=numbers.expand(len(said), -1).to(said.prompt_embeds.device))

    def modules(self) -> dict[str, nn.Module]:
        """The modules that generate, by name."""
        return {
            "denoiser": self.denoiser,
            "autoencoder": self.autoencoder,
            "text_encoder": self.text_encoder,
            **{name: other for name, other in self.others.items() if isinstance(other, nn.Module)},
            **{f"control {kind}": control.network for kind, control in self.controls.items()},
            **({"image encoder": self.image_prompts.encoder} if self.image_prompts else {}),
        }

    def components(self) -> dict[str, Any]:
        """The networks and tokenizers of diffusers and transformers, by their names in the diffusers layout."""
        return {
            "unet": self.denoiser.unet,
            "vae": self.autoencoder.vae,
            **self.text_encoder.components(),
            **self.others,
        }

    def networks(self) -> dict[str, Any]:
        """The components that have weights."""
        return {name: one for name, one in self.components().items() if isinstance(one, nn.Module)}

    def lora_networks(self) -> dict[str, Any]:
        """The networks that a LoRA may change."""
        networks = self.networks()
        return {name: networks[name] for name in self.family.lora}

    def configs(self) -> dict[str, dict[str, Any]]:
        """The configuration of each network, by component."""
        return {name: _config(network) for name, network in self.networks().items()}


def _config(network: Any) -> dict[str, Any]:
    config = network.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def default_size(denoiser: UNetDenoiser, autoencoder: KLAutoencoder) -> tuple[int, int]:
    """Height and width in pixels that the denoiser was made for.

    Configurations of diffusers before 0.9 say 32 for models of 64, which the stock pipeline corrects as well.

    Raises:
        UserError: the configuration has a size that is none.
    """
    config, factor = denoiser.unet.config, autoencoder.pixels_per_latent
    size = config.sample_size or 64
    sides = [size, size] if type(size) is int else size
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(_is_side(each, factor) for each in sides)
    ):
        what = f"unet/config.json has sample_size {shortened(size)}"
        raise UserError(what, f"it must be at most {MAX_SIZE_PX // factor}: the side of the latents")
    if type(size) is int and size < 64 and _is_before_0_9(config.get("_diffusers_version")):
        sides = [64, 64]
    return sides[0] * factor, sides[1] * factor


def _is_side(value: Any, factor: int) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIZE_PX // factor


def _is_before_0_9(version: Any) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
    return match is not None and (int(match[1]), int(match[2])) < (0, 9)


def assemble(
    place: Path,
    family: Family,
    components: Mapping[str, Any],
    scheduler_config: dict[str, Any],
    index: Mapping[str, Any] = MappingProxyType({}),
) -> ModelParts:
    """A model of these components, in evaluation mode, without gradients, with the size of its UNet as default.

    Args:
        place: where they come from, for messages.
        components: all of the family's but the scheduler, by name.
        index: the contents of `model_index.json`, if there is one.

    Raises:
        UserError: the components do not fit each other.
    """
    denoiser, autoencoder = UNetDenoiser(components["unet"]), KLAutoencoder(components["vae"])
    settings = family.read_settings(index)
    text_encoder = family.text_encoder(components, settings)
    height, width = default_size(denoiser, autoencoder)
    parts = ModelParts(
        denoiser,
        autoencoder,
        text_encoder,
        scheduler_config,
        Defaults(height=height, width=width, **family.defaults),
        settings=settings,
    )
    parts.task = task_of_channels(denoiser)
    parts.others = {name: one for name, one in components.items() if name not in parts.components()}
    tokenizers = {name: components[name] for name in family.tokenizers}
    check_tokens(place, tokenizers, parts.networks())
    check_widths(place, family.widths(parts.configs()))
    for module in parts.modules().values():
        module.eval().requires_grad_(False)
    return parts


def check_widths(place: Path, widths: Iterable[Width]) -> None:
    """Refuse components that do not fit each other, before the first image is half done.

    Raises:
        UserError: naming the number that differs.
    """
    for width in widths:
        if width.wanted != width.given:
            raise UserError(
                f"{place}: the unet has {width.what} {width.wanted}, the {width.component} {width.given}",
                "these parts are not of one text-to-image model",
            )
