"""The noise that an upscaler's low-resolution image gets: a schedule of its own, apart from that of the diffusion.

Cascaded diffusion (Ho et al. 2021, section 4.2) noises the image that a super-resolution model is given, so that the
model does not copy its artefacts. The level is drawn for each sample in training and told to the network as a class
label; it has nothing to do with the timestep of the latents.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ldm.config import Settings
from ldm.diffusion.path import DDPMPath, ScheduleSettings
from ldm.diffusion.schedulers import training_path
from ldm.errors import UserError

NUM_LEVELS = 1000
"""Noise levels, and so class labels, of every upscaler."""

COMPONENT = "low_res_scheduler"
"""The component of the diffusers layout that holds the schedule."""


class LowResolutionNoise(Settings):
    """The noise schedule of the low-resolution image, by default that of Stable Diffusion's 4x upscaler."""

    max_noise_level: int = Field(
        350,
        ge=1,
        lt=NUM_LEVELS,
        description="training draws levels below it, generation takes levels up to it",
    )
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        "scaled_linear", description="as `schedule.beta_schedule`"
    )
    beta_start: float = Field(0.0001, gt=0, lt=1, description="first beta; unused by the cosine schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta; unused by the cosine schedule")

    def path(self) -> DDPMPath:
        """The schedule itself."""
        return DDPMPath(ScheduleSettings(num_train_timesteps=NUM_LEVELS, **self._betas()))

    def scheduler_config(self) -> dict[str, Any]:
        """The `scheduler_config.json` of diffusers' `DDPMScheduler` with this schedule."""
        return {"_class_name": "DDPMScheduler", "num_train_timesteps": NUM_LEVELS, **self._betas()}

    def _betas(self) -> dict[str, Any]:
        return self.model_dump(exclude={"max_noise_level"})


def low_resolution_of(config: Mapping[str, Any], max_noise_level: Any, *, folder: Path) -> LowResolutionNoise:
    """The noise of a folder in the diffusers layout.

    Args:
        config: of its `low_res_scheduler`.
        max_noise_level: from its `model_index.json`.

    Raises:
        UserError: the schedule or the level is not supported; the file is named.
    """
    schedule = training_path({**config, "_class_name": "DDPMScheduler"}, str(folder), component=COMPONENT)
    file = f"{folder / COMPONENT / 'scheduler_config.json'}"
    if schedule.num_train_timesteps != NUM_LEVELS:
        raise UserError(f"{file} has {schedule.num_train_timesteps} noise levels", f"it must be {NUM_LEVELS}")
    if schedule.rescale_betas_zero_snr:
        raise UserError(f"{file} has rescale_betas_zero_snr", "low-resolution noise is not read with it")
    if type(max_noise_level) is not int or not 1 <= max_noise_level < NUM_LEVELS:
        what = f"{folder / 'model_index.json'} has max_noise_level {max_noise_level!r}"
        raise UserError(what, f"it must be a whole number from 1 to {NUM_LEVELS - 1}")
    names = LowResolutionNoise.model_fields.keys() - {"max_noise_level"}
    return LowResolutionNoise(max_noise_level=max_noise_level, **{n: getattr(schedule, n) for n in names})
