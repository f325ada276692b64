"""A second model that finishes the sampling which the first has begun, as the refiner of Stable Diffusion XL does.

The two share the noise levels: the first model runs the steps before `denoising_end`, and the second goes on from its
noisy latents. In diffusers these are `denoising_end` of the first pipeline and `denoising_start` of the second.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm.diffusion.sampling import SamplingPlan
from ldm.errors import UserError
from ldm.models.adapters.folder import identity_of_model
from ldm.models.generation_settings import TEXT_TO_IMAGE
from ldm.models.loading.model import ModelParts, load_model
from ldm.models.vae import KLAutoencoder

REFINER = "refiner"
"""What a setting of the hand-over needs: `Setting.only_with`."""


@dataclass(frozen=True)
class Refiner:
    """The parts of a second model with the autoencoder of the first, and what identifies it."""

    parts: ModelParts
    weights_hash: str


def load_refiner(name: str | Path, parts: ModelParts, model_id: str, dtype: torch.dtype) -> Refiner:
    """Load the model that refines the latents of another.

    Args:
        parts: of the other model.
        model_id: of the other model.

    Raises:
        UserError: it cannot be loaded, or does not continue what the other model has begun.
    """
    if not parts.family.refiners:
        what = f"{model_id} is {parts.family.title}, for which there are no refiners"
        raise UserError(what, "leave out --refiner: it is for models of Stable Diffusion XL")
    loaded = load_model(name, dtype=dtype)
    check_refines(str(name), loaded.parts, parts, model_id)
    identity = identity_of_model(loaded.parts, loaded.place)
    shared = replace(loaded.parts, autoencoder=parts.autoencoder)  # its own would only take memory
    return Refiner(shared, identity.weights_hash)


def check_refines(name: str, refiner: ModelParts, parts: ModelParts, model_id: str) -> None:
    """Check that a model can go on with the latents of another.

    Raises:
        UserError: it is of another family or task, or its latents mean something else.
    """
    fix = "use the refiner of Stable Diffusion XL, or a model of it for text-to-image"
    if refiner.family.name not in parts.family.refiners:
        raise UserError(f"{name} is {refiner.family.title}, which cannot refine images of {model_id}", fix)
    for each, task in ((name, refiner.task), (model_id, parts.task)):
        if task != TEXT_TO_IMAGE:
            what = f"{each} is a model for {task}, and only those for {TEXT_TO_IMAGE} hand over their latents"
            raise UserError(what, "use another one, or leave out --refiner")
    theirs, ours = (_latent_space(each.autoencoder) for each in (refiner, parts))
    if other := next((key for key in ours if theirs[key] != ours[key]), None):
        said = f"{other} {theirs[other]}, and that of {model_id} {ours[other]}"
        raise UserError(f"{name} has another latent space: its autoencoder has {said}", fix)


def _latent_space(autoencoder: KLAutoencoder) -> dict[str, Any]:
    """What latents mean. The weights may differ: there are decoders trained anew for the same latents."""
    statistics = {key: autoencoder.vae.config.get(key) for key in ("latents_mean", "latents_std")}
    return {
        "latent_channels": autoencoder.num_channels,
        "pixels per latent": autoencoder.pixels_per_latent,
        "scaling_factor": autoencoder.scaling_factor,
        "shift_factor": autoencoder.shift_factor,
        **{key: None if value is None else tuple(value) for key, value in statistics.items()},
    }


def check_hand_over(plan: SamplingPlan, refining: SamplingPlan, denoising_end: float) -> None:
    """Check that both models have something to do, and that they hand over at one noise level.

    Raises:
        UserError: one of them has no step, or the noise schedules differ.
    """
    idle = next((who for who, each in (("model", plan), ("refiner", refining)) if each.num_steps < 1), None)
    if idle:
        what = f"denoising_end {denoising_end:g} leaves the {idle} no step of the sampling"
        raise UserError(what, "use another share, or more steps")
    assert plan.following is not None  # the refiner has a step after it
    left, begun = plan.following.sigma, refining.steps[0].sigma
    if abs(left - begun) > 1e-3 * left:
        what = f"the model stops with {left:.4g} times as much noise as signal, and the refiner begins at {begun:.4g}"
        raise UserError(what, "the scheduler configs must have the same noise schedule and spacing")
