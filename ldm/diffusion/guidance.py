"""Guidance: a function from a denoiser to a denoiser, so the sampling loop knows nothing of it.

`guide` calls the denoiser once for N branches, each a `Conditioning`, and hands their predictions to a function that
combines them. Classifier-free guidance has two branches, InstructPix2Pix three, a composition of N prompts N + 1.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ldm.diffusion.interval import EVERYWHERE, Interval
from ldm.types import Conditioning, Denoiser, Step

PROMPT = "prompt"
"""The branch of the conditioning that the sampler passes; it comes last in the batch."""
NEGATIVE = "negative"
"""The branch that classifier-free guidance leads away from: a negative prompt, or an empty one."""

Combine = Callable[[Mapping[str, Tensor]], Tensor]
"""The predictions [B, C, h, w] of the branches by name -> the guided prediction [B, C, h, w]."""


def guide(
    denoiser: Denoiser,
    branches: Mapping[str, Conditioning],
    combine: Combine,
    interval: Interval = EVERYWHERE,
) -> Denoiser:
    """A denoiser that combines the predictions of several branches, computed in one call of (N + 1) B rows.

    Args:
        branches: the N branches besides the prompt's, by name, in the order of their rows in the batch. Each has
            1 row, used for all, or B rows.
        combine: is given each branch's prediction under its name, and the prompt's under `PROMPT`.
        interval: outside it the denoiser is called for the prompt alone, with B rows: less work, and often better
            images (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    """

    def guided(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        num_rows, count = len(conditioning), len(branches) + 1
        together = Conditioning.cat([*(each.expand(num_rows) for each in branches.values()), conditioning])
        output = denoiser(torch.cat([latents] * count), torch.cat([timesteps] * count), together, step=step)
        return combine(dict(zip((*branches, PROMPT), output.chunk(count), strict=True)))

    return _inside(interval, guided, denoiser)


def classifier_free_guidance(guidance_scale: float, guidance_rescale: float = 0.0) -> Combine:
    """Ho & Salimans 2022, Eq. 6: model_pred = negative + guidance_scale (prompt - negative).

    Args:
        guidance_rescale: share of `rescale_guidance` that is mixed in, 0 to 1.
    """

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        negative, positive = predictions[NEGATIVE], predictions[PROMPT]
        model_pred = negative + guidance_scale * (positive - negative)
        return rescale_guidance(model_pred, positive, guidance_rescale) if guidance_rescale else model_pred

    return combine


def compose(weights: Mapping[str, float], guidance_scale: float) -> Combine:
    """Composition of prompts, Liu et al. 2022, Eq. 11: negative + sum_i w_i (prediction_i - negative).

    Args:
        weights: w_i by the name of the branch, relative to the prompt's own weight; a negative one leads away from it.
        guidance_scale: the weight of the prompt's own branch, which multiplies the others too.
    """
    shares = {PROMPT: 1.0, **weights}

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        negative = predictions[NEGATIVE]
        moves = [weight * (predictions[name] - negative) for name, weight in shares.items()]
        return negative + guidance_scale * torch.stack(moves).sum(dim=0)

    return combine


def guide_with_negative(
    denoiser: Denoiser,
    negative: Conditioning,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    interval: Interval = EVERYWHERE,
) -> Denoiser:
    """Classifier-free guidance with one negative prompt; with a scale of 1 or less, the denoiser itself."""
    if guidance_scale <= 1:
        return denoiser
    combine = classifier_free_guidance(guidance_scale, guidance_rescale)
    return guide(denoiser, {NEGATIVE: negative}, combine, interval)


def rescale_guidance(model_pred: Tensor, positive: Tensor, guidance_rescale: float) -> Tensor:
    """Give a guided prediction back the spread of the prompt's own, Eq. 15 and 16 of Lin et al. 2023.

    Args:
        model_pred: the guided prediction [B, C, h, w].
        positive: the prediction for the prompt alone [B, C, h, w].
        guidance_rescale: phi; 0 changes nothing.
    """
    axes = list(range(1, positive.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / model_pred.std(dim=axes, keepdim=True)
    return guidance_rescale * (model_pred * ratio) + (1 - guidance_rescale) * model_pred


def _inside(interval: Interval, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """One denoiser at the steps within an interval, and where no step is given; another at the rest."""
    if interval == EVERYWHERE:
        return guided

    def either(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        denoiser = guided if step is None or within(step, interval) else plain
        return denoiser(latents, timesteps, conditioning, step=step)

    return either


def within(step: Step, interval: Interval) -> bool:
    """Whether a step is in an interval: its start is included, its end is not."""
    start, end = interval
    return start <= step.fraction < end if start < end else start >= step.sigma > end
