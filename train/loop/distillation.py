"""The networks of a distillation beside the one that is trained: the teacher, and the one that gives the target."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.diffusion.consistency import (
    DistillSettings,
    Networks,
    consistency_loss,
    guidance_scales,
    guided_teacher,
    solver_timesteps,
)
from ldm.diffusion.path import ProbabilityPath
from ldm.models.dropout import set_dropout_keys
from ldm.models.unet import UNetDenoiser
from ldm.tasks.guiding import told_guidance
from ldm.tasks.task import with_prompt
from ldm.types import Conditioning, Denoiser

from .steps import Batch


class Distillation:
    """What a consistency loss needs besides the student; not a module, so none of it is trained or saved.

    Attributes:
        teacher: the base model's denoiser; None without a teacher.
        average: the denoiser with the student's averaged weights; None if the student itself gives the target.
    """

    def __init__(
        self, settings: DistillSettings, teacher: UNetDenoiser | None, guidance_scale: float
    ) -> None:
        """Without a range of guidance scales in the settings, `guidance_scale` is the teacher's."""
        self.settings, self.teacher = settings, teacher
        self.scales = settings.guidance_scale or (guidance_scale, guidance_scale)
        self.average: UNetDenoiser | None = None
        self._device: torch.device | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the teacher has guidance, which needs the empty prompt."""
        return self.teacher is not None and self.scales != (1.0, 1.0)

    def use_average(self, student: UNetDenoiser, average: Mapping[str, Tensor]) -> None:
        """Let the averaged weights give the target.

        Args:
            average: by the name of the student's weight. The tensors themselves are used, as they are updated in place.
        """
        if self.settings.target == "average":
            self.average = with_weights(student, average)

    def timesteps(self, batch: Batch, path: ProbabilityPath) -> Tensor:
        """The batch's timesteps [b]: where each sample's solver step starts."""
        return solver_timesteps(batch["position"], path, self.settings.num_solver_steps)[0]

    def loss(
        self,
        student: UNetDenoiser,
        batch: Batch,
        latents: Tensor,
        conditioning: Conditioning,
        empty: Conditioning | None,
        path: ProbabilityPath,
    ) -> Tensor:
        """The loss of each sample, [b].

        Args:
            empty: the empty prompt, one row; needed if `is_guided`.
        """
        settings, position, teacher = self.settings, batch["position"], self._teacher_on(latents.device)
        scales = guidance_scales(position, self.scales, settings.num_solver_steps)
        if student.embeds_guidance:
            conditioning = told_guidance(conditioning, scales)
        if self.average is not None:
            set_dropout_keys(self.average, batch["noise"])
        guided: Denoiser | None = teacher
        if teacher is not None and empty is not None:
            guided = guided_teacher(teacher, with_prompt(conditioning, empty), scales)
        # while the averaged weights are measured, they are the student's
        average = self.average if student.training else None
        return consistency_loss(
            Networks(student, average or student, guided),
            latents,
            batch["noise"],
            position,
            conditioning,
            path,
            settings,
            mask=batch.get("loss_mask"),
        )

    def _teacher_on(self, device: torch.device) -> UNetDenoiser | None:
        if self.teacher is not None and device != self._device:
            self.teacher.to(device)
            self._device = device
        return self.teacher


def frozen_copy(denoiser: UNetDenoiser, *, share: bool) -> UNetDenoiser:
    """A copy of a denoiser in evaluation mode, without gradients.

    Args:
        share: use the denoiser's own weights, which are not going to be trained.
    """
    memo = {id(weight): weight for weight in denoiser.parameters()} if share else {}
    return copy.deepcopy(denoiser, memo).eval().requires_grad_(False)


def with_weights(denoiser: UNetDenoiser, weights: Mapping[str, Tensor]) -> UNetDenoiser:
    """A copy of a denoiser that uses the given tensors as the weights that are trained, without gradients.

    It uses the denoiser's own frozen weights.

    Args:
        weights: for each weight that is trained, by its name.
    """
    memo = {
        id(own): nn.Parameter(weights[name]) if own.requires_grad else own
        for name, own in denoiser.named_parameters()
    }
    return copy.deepcopy(denoiser, memo).requires_grad_(False)
