"""Guidance as a function that wraps a denoiser in another denoiser, so the sampling loop does not depend on it.

`guide` calls the denoiser once for N branches, each a `Conditioning`, and passes their predictions to a function that
combines them. Classifier-free guidance has two branches, InstructPix2Pix three, a composition of N prompts N + 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from ldm.diffusion.interval import EVERYWHERE, Interval
from ldm.diffusion.path import ProbabilityPath
from ldm.types import Conditioning, Denoiser, Step

PROMPT = "prompt"
"""The branch of the conditioning that the sampler passes; it comes last in the batch."""
OWN_PROMPT = "own prompt"
"""Its prediction before other prompts are joined with it; without those it is that of `PROMPT`."""
NEGATIVE = "negative"
"""The branch that classifier-free guidance moves away from: a negative or an empty prompt."""

Combine = Callable[[Mapping[str, Tensor]], Tensor]
"""Maps the predictions [B, C, h, w] of the branches, by name, to the guided prediction [B, C, h, w]."""

CombineAt = Callable[[Mapping[str, Tensor], Tensor, Tensor, Step | None], Tensor]
"""The same from the predictions, the network's latents [B, C, h, w], the timesteps [B] and the step."""


@dataclass(frozen=True)
class Composition:
    """Prompts that are joined with the one that the sampler passes, each with a weight.

    Attributes:
        weight: of the sampler's own prompt.
        others: the weight and the conditioning of each other prompt, B rows.
    """

    weight: float = 1.0
    others: tuple[tuple[float, Conditioning], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether there is only the sampler's own prompt, with weight 1."""
        return self.weight == 1 and not self.others

    @property
    def weights(self) -> dict[str, float]:
        """The weights by branch name."""
        return {PROMPT: self.weight} | {_joined(i): weight for i, (weight, _) in enumerate(self.others)}

    @property
    def branches(self) -> dict[str, Conditioning]:
        """The conditioning of the other prompts by branch name."""
        return {_joined(i): conditioning for i, (_, conditioning) in enumerate(self.others)}

    def map(self, fn: Callable[[Conditioning], Conditioning]) -> "Composition":
        """A copy with `fn` applied to the conditioning of each other prompt."""
        return replace(self, others=tuple((weight, fn(each)) for weight, each in self.others))


ALONE = Composition()


@dataclass(frozen=True)
class GuidanceInputs:
    """What guidance may use besides the denoiser and the negative prompt.

    Attributes:
        composition: other prompts that are joined with the sampler's.
        path: with the network's prediction type.
        weak: a smaller or less trained denoiser, for autoguidance.
        perturbed: the denoiser with perturbed attention.
    """

    composition: Composition = ALONE
    path: ProbabilityPath | None = None
    weak: Denoiser | None = None
    perturbed: Denoiser | None = None


NO_INPUTS = GuidanceInputs()


def _joined(index: int) -> str:
    return f"joined prompt {index + 1}"


def guide(
    denoiser: Denoiser,
    branches: Mapping[str, Conditioning],
    combine: Combine,
    interval: Interval = EVERYWHERE,
    composition: Composition = ALONE,
) -> Denoiser:
    """A denoiser that combines the predictions of several branches, computed in one call of (N + 1) B rows.

    Args:
        branches: the N branches besides the prompt, by name, in the order of their rows in the batch. Each has
            B rows, or a single row that is repeated.
        combine: receives the prediction of each branch under its name, and of the prompt under `PROMPT`.
        interval: outside it, the denoiser is called only for the prompt, with B rows. This is faster and often gives
            better images (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
        composition: `combine` receives the composed prediction under `PROMPT`, of `composed_prediction`; outside the
            interval it is the result.
    """
    return guide_at(denoiser, branches, _anywhere(combine), interval, composition)


def guide_at(
    denoiser: Denoiser,
    branches: Mapping[str, Conditioning],
    combine: CombineAt,
    interval: Interval = EVERYWHERE,
    composition: Composition = ALONE,
    others: Mapping[str, Denoiser] = MappingProxyType({}),
) -> Denoiser:
    """`guide` with a function that also depends on the latents and the level of the noise.

    Args:
        others: more denoisers by name, which are called for the prompt alone; `combine` receives their predictions too.
    """
    every = {**branches, **composition.branches}

    def rows_of(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor, Conditioning]:
        num_rows, count = len(conditioning), len(every) + 1
        together = Conditioning.cat([*(each.expand(num_rows) for each in every.values()), conditioning])
        return torch.cat([latents] * count), torch.cat([timesteps] * count), together

    def named(output: Tensor) -> dict[str, Tensor]:
        found = dict(zip((*every, PROMPT), output.chunk(len(every) + 1), strict=True))
        found[OWN_PROMPT] = found[PROMPT]
        if not composition.is_plain:
            found[PROMPT] = composed_prediction(composition.weights, found)
        return found

    def guided(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        found = named(denoiser(*rows_of(latents, timesteps, conditioning), step=step))
        for name, other in others.items():
            found[name] = other(latents, timesteps, conditioning, step=step)
        return combine(found, latents, timesteps, step)

    def composed(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        return named(denoiser(*rows_of(latents, timesteps, conditioning), step=step))[PROMPT]

    return _inside(interval, guided, denoiser if composition.is_plain else composed)


def _anywhere(combine: Combine) -> CombineAt:
    return lambda predictions, latents, timesteps, step: combine(predictions)


def rescaled(combine: CombineAt, guidance_rescale: float) -> CombineAt:
    """`combine` followed by `rescale_guidance`."""
    if not guidance_rescale:
        return combine
    return lambda predictions, latents, timesteps, step: rescale_guidance(
        combine(predictions, latents, timesteps, step), predictions[PROMPT], guidance_rescale
    )


def classifier_free_guidance(guidance_scale: float, guidance_rescale: float = 0.0) -> Combine:
    """Ho & Salimans 2022, Eq. 6: model_pred = negative + guidance_scale (prompt - negative).

    Args:
        guidance_rescale: phi of `rescale_guidance`, 0 to 1.
    """

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        negative, positive = predictions[NEGATIVE], predictions[PROMPT]
        model_pred = negative + guidance_scale * (positive - negative)
        return rescale_guidance(model_pred, positive, guidance_rescale) if guidance_rescale else model_pred

    return combine


def composed_prediction(weights: Mapping[str, float], predictions: Mapping[str, Tensor]) -> Tensor:
    """What several prompts predict together, Liu et al. 2022, Eq. 11 with a scale of 1.

    negative + sum_i w_i (prediction_i - negative)
    """
    negative = predictions[NEGATIVE]
    moves = [weight * (predictions[name] - negative) for name, weight in weights.items()]
    return negative + torch.stack(moves).sum(dim=0)


def edit_guidance(no_source: str, text_scale: float, image_scale: float) -> Combine:
    """Brooks et al. 2023, Eq. 3, with two scales: e_00 + image_scale (e_0I - e_00) + text_scale (e_TI - e_0I).

    Args:
        no_source: the branch e_00 with neither instruction nor source; `NEGATIVE` is e_0I, the source alone.
    """

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        nothing, source, both = predictions[no_source], predictions[NEGATIVE], predictions[PROMPT]
        return nothing + image_scale * (source - nothing) + text_scale * (both - source)

    return combine


def guide_with_negative(
    denoiser: Denoiser,
    negative: Conditioning,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    interval: Interval = EVERYWHERE,
    composition: Composition = ALONE,
) -> Denoiser:
    """Classifier-free guidance with one negative prompt; `denoiser` itself for a single prompt and a scale up to 1."""
    if guidance_scale <= 1 and composition.is_plain:
        return denoiser
    combine = classifier_free_guidance(max(guidance_scale, 1.0), guidance_rescale)
    return guide(denoiser, {NEGATIVE: negative}, combine, interval, composition)


def changing_prompts(stages: Sequence[tuple[Denoiser, Conditioning]], stage_of: Sequence[int]) -> Denoiser:
    """A denoiser for prompts that change during sampling; it replaces the conditioning that the sampler passes.

    Args:
        stages: a denoiser, with guidance, and the conditioning [B rows] to call it with.
        stage_of: the stage of each sampling step.
    """

    def denoiser(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        assert step is not None, "prompts that change need to know the step"
        current, own = stages[stage_of[step.index]]
        return current(latents, timesteps, own, step=step)

    return denoiser


def rescale_guidance(model_pred: Tensor, positive: Tensor, guidance_rescale: float) -> Tensor:
    """Rescale a guided prediction to the standard deviation of the prompt's, Eq. 15 and 16 of Lin et al. 2023.

    Args:
        model_pred: the guided prediction [B, C, h, w].
        positive: the prediction for the prompt, without guidance [B, C, h, w].
        guidance_rescale: phi; 0 changes nothing.
    """
    axes = list(range(1, positive.ndim))
    ratio = positive.std(dim=axes, keepdim=True) / model_pred.std(dim=axes, keepdim=True)
    return guidance_rescale * (model_pred * ratio) + (1 - guidance_rescale) * model_pred


def _inside(interval: Interval, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """Use `guided` within the interval and in calls without a step, and `plain` elsewhere."""
    if interval == EVERYWHERE:
        return guided

    def either(
        latents: Tensor, timesteps: Tensor, conditioning: Conditioning, *, step: Step | None = None
    ) -> Tensor:
        denoiser = guided if step is None or within(step, interval) else plain
        return denoiser(latents, timesteps, conditioning, step=step)

    return either


def within(step: Step, interval: Interval) -> bool:
    """Whether a step is within an interval; the start is inclusive, the end exclusive."""
    start, end = interval
    return start <= step.fraction < end if start < end else start >= step.sigma > end
