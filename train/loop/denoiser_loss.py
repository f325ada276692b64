"""Denoiser, text encoder and objective as one module: a batch in, one loss a sample out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ldm.diffusion.objective import diffusion_loss, split_by_tenth, timestep_at
from ldm.diffusion.path import DDPMPath
from ldm.models.dropout import set_dropout_keys
from ldm.models.loading.model import ModelParts
from ldm.types import Conditioning

from ..data.latents import EmbedPrompts
from ..settings.denoiser import DenoiserSettings
from .optim import ParameterGroup
from .steps import Batch, to_device


class DenoiserLoss(nn.Module):
    """What is trained. The autoencoder, and a text encoder that is frozen, are used and are no part of it.

    Attributes:
        parts: the whole model.
        prompts: answers for a frozen text encoder, from the cache; None asks the text encoder itself.
    """

    def __init__(
        self,
        parts: ModelParts,
        settings: DenoiserSettings,
        schedule: DDPMPath,
        groups: Sequence[ParameterGroup],
    ) -> None:
        super().__init__()
        self.denoiser = parts.denoiser
        if settings.trains_text_encoder:
            self.text_encoder = parts.text_encoder
        self.settings, self.schedule, self.groups = settings, schedule, list(groups)
        self.parts = parts  # no module, so what it holds besides is not moved, saved or trained with this one
        self.prompts: EmbedPrompts | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """What the optimizer is given."""
        return self.groups

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample `loss` [b], and for each tenth of the timesteps `loss_tK` and `count_tK` [b]."""
        set_dropout_keys(self, batch["noise"])
        latents = self.latents(batch)
        timesteps = timestep_at(batch["position"], self.schedule, self.settings.objective)
        loss = diffusion_loss(
            self.denoiser,
            latents,
            batch["noise"],
            timesteps,
            self.embed(batch["caption"], latents.device),
            self.schedule,
            self.settings.objective,
            mask=batch.get("loss_mask"),
            offset=batch.get("offset"),
            perturbation=batch.get("perturbation"),
        )
        return {
            "loss": loss * batch["loss_weight"],
            **by_tenth(loss, self.schedule.tenth(timesteps)),
        }

    def latents(self, batch: Batch) -> Tensor:
        """The batch's latents [b, C, h, w]: drawn from the moments it holds, or from those of its pixels."""
        autoencoder = self.parts.autoencoder
        moments = batch.get("moments")
        if moments is None:
            pixel_values = batch["pixel_values"]
            with as_for_the_cache(pixel_values.device):
                moments = autoencoder.encode(pixel_values)
        return autoencoder.sample_posterior(moments, batch["posterior_noise"])

    def embed(self, captions: list[str], device: torch.device) -> Conditioning:
        """The captions' embeddings, from the cache or from the text encoder."""
        if self.prompts is not None:
            return self.prompts(captions).map(lambda tensor: to_device(tensor, device))
        with nullcontext() if self.settings.trains_text_encoder else as_for_the_cache(device):
            embeds: Conditioning = self.parts.text_encoder(captions, num_chunks=self.settings.prompt_chunks)
            return embeds


@contextmanager
def as_for_the_cache(device: torch.device) -> Iterator[None]:
    """A frozen encoder says the same with a cache and without: no gradient and, whatever the mixed precision, float32.

    Stable Diffusion's autoencoder would overflow in fp16.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def by_tenth(loss: Tensor, tenths: Tensor) -> dict[str, Tensor]:
    """`loss_tK` and `count_tK`, each [b]: the loss where the sample's timestep lies in tenth K, else 0; and 1 or 0."""
    losses, counts = split_by_tenth(loss, tenths)
    found = {f"loss_t{tenth}": part for tenth, part in enumerate(losses)}
    return found | {f"count_t{tenth}": part for tenth, part in enumerate(counts)}
