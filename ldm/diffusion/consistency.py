"""Consistency distillation: a student that goes from any noise level to the end of its teacher's trajectory at once.

The consistency function of a network is

    f(x_t, t) = c_skip(t) x_t + c_out(t) x_0(x_t, t),    c_skip(0) = 1,    c_out(0) = 0

so it is the identity at t = 0 (Song et al. 2023, Eq. 5). Training makes f agree at two levels of the same trajectory,
which the teacher's ODE solver connects (Luo et al. 2023, "Latent Consistency Models", Algorithm 1). The scalings are
those of diffusers' `LCMScheduler`; on a rectified flow x_0 = x_t - t velocity is the identity at t = 0 by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm.config import Settings, checked_by
from ldm.diffusion.flow import TIME_SCALE, FlowPath
from ldm.diffusion.guidance import NEGATIVE, PROMPT, guide
from ldm.diffusion.objective import masked_mean
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.errors import UserError
from ldm.types import Conditioning, Denoiser

TIMESTEP_SCALING, SIGMA_DATA = 10.0, 0.5
"""s and sigma_data of the scalings, as in `LCMScheduler`."""

NUM_FEW_STEPS = 4
"""The default number of sampling steps of a distilled model."""

Range = tuple[float, float]


def check_range(scales: Range) -> Range:
    """Refuse guidance scales that do not rise from at least 1."""
    low, high = scales
    if not 1 <= low <= high < float("inf"):  # false for NaN
        raise UserError(
            "these are no guidance scales", "give two rising ones from 1 on, such as [2, 6], or [3, 3]"
        )
    return scales


class DistillSettings(Settings):
    """How a base model is distilled into one that needs few sampling steps."""

    trajectory: Literal["teacher", "data"] = Field(
        "teacher",
        description="teacher: what the base model does with guidance (Luo et al. 2023); data: straight from noise to "
        "the image, without a teacher and without guidance (consistency training, Song et al. 2023)",
    )
    guidance_scale: Annotated[Range | None, checked_by(check_range)] = Field(
        None,
        description="the teacher's guidance scale, drawn between two numbers for each sample; default: that of the "
        "base model, for all",
    )
    embed_guidance: bool = Field(
        False,
        description="tell the student the guidance scale, so that it can be chosen when images are made; needs "
        "trainable: unet",
    )
    num_solver_steps: int = Field(
        50, ge=2, description="steps of the teacher's solver from noise to image; LCMScheduler expects 50"
    )
    target: Literal["student", "average"] = Field(
        "student",
        description="whose output at the lower noise level the student learns: its own (Song & Dhariwal 2023), or that "
        "of its averaged weights (Luo et al. 2023, with optim.ema_decay 0.95)",
    )
    huber_c: float = Field(
        0.001, gt=0, description="error at which the loss changes from quadratic to linear"
    )

    def model_post_init(self, _: object) -> None:
        if self.trajectory == "data" and (self.guidance_scale or self.embed_guidance):
            raise ValueError(
                "distill.trajectory data has no guidance: leave out guidance_scale and embed_guidance"
            )


def check_distillable(path: ProbabilityPath, base: str) -> None:
    """Refuse a path without a consistency function that a sampler of diffusers knows.

    Raises:
        UserError: the base model is on such a path.
    """
    named = f"distill with base = {base}"
    if isinstance(path, FlowPath) and path.prediction_type == "flow_prediction":
        return
    if not isinstance(path, DDPMPath):
        raise UserError(
            f"{named}, which predicts {path.prediction_type} on path {path.name}",
            "use a base on path ddpm, or a flow model that predicts the velocity",
        )
    if path.reverse_steps is not None:
        raise UserError(
            f"{named}, which has learned a variance", "LCMScheduler cannot read it: use another base"
        )


def boundary_scalings(path: ProbabilityPath, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, both [B, 1, 1, 1], for timesteps [B].

    On DDPM's path sigma_data^2 / ((s t)^2 + sigma_data^2) and s t / sqrt((s t)^2 + sigma_data^2); on a flow 0 and 1.
    """
    if isinstance(path, FlowPath):
        zeros = torch.zeros_like(timesteps).view(-1, 1, 1, 1)
        return zeros, zeros + 1
    scaled = (TIMESTEP_SCALING * timesteps.float()).view(-1, 1, 1, 1)
    total = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def consistency_output(
    denoiser: Denoiser,
    noisy_latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    path: ProbabilityPath,
) -> Tensor:
    """f(x_t, t) of a network, [B, C, h, w] in float32."""
    x_0 = predicted_x_0(denoiser, noisy_latents, timesteps, conditioning, path)
    c_skip, c_out = boundary_scalings(path, timesteps)
    return c_skip * noisy_latents + c_out * x_0


def predicted_x_0(
    denoiser: Denoiser,
    noisy_latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    path: ProbabilityPath,
) -> Tensor:
    """What a network takes for the clean latents, [B, C, h, w] in float32."""
    model_pred = denoiser(path.scale_model_input(noisy_latents, timesteps), timesteps, conditioning)
    return path.to_x_0(model_pred.float(), noisy_latents, timesteps)


def solver_timesteps(position: Tensor, path: ProbabilityPath, num_steps: int) -> tuple[Tensor, Tensor]:
    """The timesteps [B] that a solver step starts from and arrives at, for uniform positions [B] in [0, 1).

    On DDPM's path with T timesteps and k = T // N: (i + 1) k - 1 for i from 0 to N - 1, and k less, but at least 0. On
    a flow: (i + 1)/N and i/N.
    """
    index = _index(position, num_steps)
    if isinstance(path, FlowPath):
        return (index + 1) * (TIME_SCALE / num_steps), index * (TIME_SCALE / num_steps)
    assert isinstance(path, DDPMPath)
    stride = path.settings.num_train_timesteps // num_steps
    start = ((index + 1) * stride - 1).long()
    return start, (start - stride).clamp(min=0)


def guidance_scales(position: Tensor, scales: Range, num_steps: int) -> Tensor:
    """Guidance scales [B], uniform in a range. They depend on where in its solver step a position lies.

    That is as random as the step itself, and independent of it.
    """
    low, high = scales
    fraction = position * num_steps - _index(position, num_steps)
    return low + (high - low) * fraction


def _index(position: Tensor, num_steps: int) -> Tensor:
    return (position * num_steps).floor().clamp(max=num_steps - 1)


def solver_step(
    x_0: Tensor, noisy_latents: Tensor, start: Tensor, end: Tensor, path: ProbabilityPath
) -> Tensor:
    """One step of DDIM (Song et al. 2021, Eq. 12), which on a flow is Euler's: x_end from x_start, [B, C, h, w].

    It only needs sigma > 0 at the start, so a level without signal is as good as any.

    Args:
        x_0: what the teacher takes for the clean latents at the start.
    """
    noise = (noisy_latents - path.alpha(start) * x_0) / path.sigma(start)
    return path.add_noise(x_0, noise, end)


def guided_teacher(teacher: Denoiser, negative: Conditioning, scales: Tensor) -> Denoiser:
    """The teacher with classifier-free guidance, with a scale for each sample [B]."""
    each = scales.view(-1, 1, 1, 1)

    def combine(predictions: Mapping[str, Tensor]) -> Tensor:
        return predictions[NEGATIVE] + each * (predictions[PROMPT] - predictions[NEGATIVE])

    return guide(teacher, {NEGATIVE: negative}, combine)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c without cancellation; any shape (Song & Dhariwal 2023, Eq. 7)."""
    square = difference.square()
    return square / ((square + c**2).sqrt() + c)


@dataclass(frozen=True)
class Networks:
    """The networks of a distillation.

    Attributes:
        student: the network that is trained.
        target: the network whose output the student learns; it gets no gradient.
        teacher: with guidance; None without a teacher.
    """

    student: Denoiser
    target: Denoiser
    teacher: Denoiser | None


def consistency_loss(
    networks: Networks,
    latents: Tensor,
    noise: Tensor,
    position: Tensor,
    conditioning: Conditioning,
    path: ProbabilityPath,
    settings: DistillSettings,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of each sample, [B]: the distance of f at two neighbouring levels of one trajectory.

    Args:
        latents: clean, scaled latents [B, C, h, w].
        noise: standard normal [B, C, h, w].
        position: where in the solver's steps each sample is, uniform [B] in [0, 1).
        mask: weight of each position in the loss, [B, 1, h, w] from 0 to 1.
    """
    start, end = solver_timesteps(position, path, settings.num_solver_steps)
    noisy_latents = path.add_noise(latents, noise, start)
    with torch.no_grad():
        if networks.teacher is None:
            earlier = path.add_noise(latents, noise, end)
        else:
            x_0 = predicted_x_0(networks.teacher, noisy_latents, start, conditioning, path)
            earlier = solver_step(x_0, noisy_latents, start, end, path)
        target = consistency_output(networks.target, earlier, end, conditioning, path)
    output = consistency_output(networks.student, noisy_latents, start, conditioning, path)
    return masked_mean(pseudo_huber(output - target, settings.huber_c), mask)
