"""Rectified flow (Liu et al. 2022): straight lines from data to noise.

    x_t = (1 - t) x_0 + t noise,    0 <= t <= 1

The network's time input is 1000 t, as in diffusers' flow-matching schedulers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from ldm.config import Settings
from ldm.diffusion.path import ProbabilityPath

TIME_SCALE = 1000.0
"""The network's time input at t = 1."""

FlowPrediction = Literal["flow_prediction", "sample"]


class FlowSettings(Settings):
    """What a denoiser on a rectified flow predicts, and how its samplers space their steps."""

    prediction_type: FlowPrediction = Field(
        "flow_prediction", description="flow_prediction: the velocity, noise - x_0; sample: x_0"
    )
    shift: float = Field(
        1.0,
        gt=0,
        description="above 1, samplers make more of their steps at high noise; objective.timestep_shift is the same "
        "shift for training",
    )


class FlowPath(ProbabilityPath):
    """Rectified flow; the prediction is the velocity dx_t/dt = noise - x_0, or x_0."""

    name: ClassVar[str] = "flow"
    settings: FlowSettings

    def __init__(self, settings: FlowSettings | None = None) -> None:
        self.settings = settings or FlowSettings()
        self.prediction_type = self.settings.prediction_type

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        if str(config.get("_class_name", "")).startswith("FlowMatch"):
            return cls(FlowSettings(shift=config.get("shift") or 1.0))
        if not config.get("use_flow_sigmas"):
            return None
        predicts = config.get("prediction_type", "epsilon")
        return cls(FlowSettings(prediction_type=predicts, shift=config.get("flow_shift") or 1.0))

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Self | None:
        return cls.of_config({**scheduler.config, "_class_name": type(scheduler).__name__})

    def timesteps_at(self, position: Tensor) -> Tensor:
        return TIME_SCALE * position

    def tenth(self, timesteps: Tensor) -> Tensor:
        return (timesteps * 10 / TIME_SCALE).long().clamp(0, 9)

    def alpha(self, timesteps: Tensor) -> Tensor:
        return 1 - self.sigma(timesteps)

    def sigma(self, timesteps: Tensor) -> Tensor:
        return (timesteps / TIME_SCALE).view(-1, 1, 1, 1)

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """noise - x_0, or x_0."""
        return x_0 if self.prediction_type == "sample" else noise - x_0

    def to_x_0(self, model_pred: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """x_t - t velocity, or the prediction itself."""
        if self.prediction_type == "sample":
            return model_pred
        return noisy_latents - self.sigma(timesteps) * model_pred

    def noise_to_signal(self, timesteps: Sequence[float]) -> list[float]:
        """t / (1 - t); finite at t = 1."""
        if min(timesteps) < 0 or max(timesteps) > TIME_SCALE:
            raise ValueError(f"timesteps must be 0 to {TIME_SCALE:g}")
        return [t / max(TIME_SCALE - t, 1e-9) for t in timesteps]

    def scheduler_config(self) -> dict[str, Any]:
        """DPM++ 2M on flow sigmas: `StableDiffusionPipeline` cannot run diffusers' `FlowMatch...` schedulers."""
        name = "DPMSolverMultistepScheduler"
        return {
            "_class_name": name,
            "num_train_timesteps": int(TIME_SCALE),
            "steps_offset": 1,  # Stable Diffusion's value, without which its pipeline warns; flow sigmas ignore it
            **self.scheduler_settings(name),
        }

    def scheduler_settings(self, class_name: str) -> dict[str, Any]:
        if class_name.startswith("FlowMatch"):
            return {"shift": self.settings.shift}
        return {
            "use_flow_sigmas": True,
            "flow_shift": self.settings.shift,
            "prediction_type": self.prediction_type,
        }
