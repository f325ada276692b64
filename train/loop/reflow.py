"""Reflow (Liu et al. 2022, section 2.2): a rectified flow is trained again, on pairs of its own.

A trained flow, the teacher, turns the noise of each sample into latents by solving its ODE for the sample's caption.
The pair replaces noise and latents that were drawn independently. Lines between such pairs hardly cross, so the flow
that is trained on them is straighter and needs fewer steps. Of the data set only the captions are used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ldm.config import Settings
from ldm.data.cache.keys import tensors_hash
from ldm.diffusion.flow import FlowPath
from ldm.diffusion.guidance import guide_with_negative
from ldm.diffusion.path import ProbabilityPath
from ldm.diffusion.sampling import SamplingPlan, denoise, plan_sampling
from ldm.diffusion.schedulers import make_scheduler, schedulers_for, trained_path
from ldm.errors import UserError
from ldm.models.families.family import Size
from ldm.models.loading.model import load_parts
from ldm.models.loading.source import find_model
from ldm.models.parts import ModelParts
from ldm.types import Conditioning, Denoiser


class ReflowSettings(Settings):
    """Train on pairs of noise and latents that a trained rectified flow makes, in place of the images."""

    model: str = Field(description="the trained flow: a folder, a run, or a Hub id")
    num_inference_steps: int = Field(
        10, ge=1, description="steps in which it makes the latents of a sample, in each training step"
    )
    guidance_scale: float = Field(1.0, ge=0, description="guidance with which it makes them; 1: without")


Embed = Callable[[list[str], Size], Conditioning]
"""The conditioning of captions, for latents of a height and width."""


@dataclass(frozen=True)
class ReflowTeacher:
    """A trained flow that makes latents from noise.

    Attributes:
        modules: its networks, which are moved to the device of the noise.
        parts: the whole model, if it was loaded.
    """

    denoiser: Denoiser
    embed: Embed
    plan: SamplingPlan
    guidance_scale: float = 1.0
    modules: tuple[torch.nn.Module, ...] = ()
    parts: ModelParts | None = None

    @torch.no_grad()
    def latents(self, noise: Tensor, captions: list[str]) -> Tensor:
        """The latents [B, C, h, w] that noise of the same shape flows to: a function of both."""
        for module in self.modules:
            module.to(noise.device)
        size = (noise.shape[2], noise.shape[3])
        conditioning, negative = self.embed(captions, size), self.embed([""] * len(captions), size)
        guided = guide_with_negative(self.denoiser, negative, self.guidance_scale)
        (*_, (_, latents)) = denoise(guided, self.plan, noise, conditioning)
        return latents


def flow_plan(path: FlowPath, num_inference_steps: int) -> SamplingPlan:
    """How the teacher solves its ODE: with Heun's method, or DPM++ 2M if it predicts x_0."""
    config = path.scheduler_config()
    name = "heun" if "heun" in schedulers_for(config) else "dpmpp_2m"
    return plan_sampling(make_scheduler(name, config), num_inference_steps)


def load_teacher(
    settings: ReflowSettings, student: ModelParts, path: ProbabilityPath, num_chunks: int
) -> ReflowTeacher:
    """The trained flow of the settings.

    Raises:
        UserError: it does not exist, is no flow, or has another autoencoder; or the student is no flow.
    """
    if not isinstance(path, FlowPath):
        raise UserError(
            "reflow is given, but the model is no rectified flow", "set path=flow or leave it out"
        )
    place = find_model(Path(settings.model) if Path(settings.model).exists() else settings.model)[0]
    parts = load_parts(place)
    own = trained_path(parts.scheduler_config, settings.model)
    if not isinstance(own, FlowPath):
        raise UserError(
            f"reflow.model = {settings.model} is no rectified flow", "name one trained with path=flow"
        )
    if tensors_hash(parts.autoencoder.vae) != tensors_hash(student.autoencoder.vae):
        raise UserError(
            f"reflow.model = {settings.model} has another autoencoder than the model to train",
            "train with the same one",
        )
    side = parts.autoencoder.pixels_per_latent

    def embed(captions: list[str], size: Size) -> Conditioning:
        return parts.encode(captions, num_chunks, size=(side * size[0], side * size[1]))

    return ReflowTeacher(
        parts.denoiser,
        embed,
        flow_plan(own, settings.num_inference_steps),
        settings.guidance_scale,
        (parts.denoiser, parts.text_encoder),
        parts,
    )
