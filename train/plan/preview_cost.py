"""What previews, validation and evaluation cost, measured on one image of a few steps. Nothing is written."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from ..loop.denoiser_loss import DenoiserLoss
from ..loop.steps import Periodic
from ..run.preview import PreviewInputs, write_preview
from ..run.run import Run
from ..settings.denoiser import DenoiserSettings
from .step_cost import settle

NUM_MEASURED_STEPS = 3


@dataclass(frozen=True)
class PreviewCost:
    """What the previews and validations of a run's remaining steps cost.

    Attributes:
        num_images: of one preview.
        size: its height and width in pixels.
        num_previews: still to be drawn; `num_validations` likewise.
        image_sec: seconds for one image of a preview.
        validation_sec: seconds for one validation, from the same measurement.
        num_evaluations: measurements of generated images still to be made, of `evaluation_sec` each.
    """

    num_images: int
    size: tuple[int, int]
    num_previews: int
    image_sec: float
    num_validations: int = 0
    validation_sec: float = 0.0
    num_evaluations: int = 0
    evaluation_sec: float = 0.0

    @property
    def previews_sec(self) -> float:
        """Seconds for all previews."""
        return self.num_previews * self.num_images * self.image_sec

    @property
    def validations_sec(self) -> float:
        """Seconds for all validations."""
        return self.num_validations * self.validation_sec

    @property
    def evaluations_sec(self) -> float:
        """Seconds for all measurements of generated images."""
        return self.num_evaluations * self.evaluation_sec


def measure_previews(
    run: Run,
    settings: DenoiserSettings,
    loss: DenoiserLoss,
    inputs: PreviewInputs,
    *,
    start: int,
    held_out: int,
) -> PreviewCost:
    """Sample one image for a few steps, and scale its time to those of the settings. Every process must call it.

    Args:
        inputs: of the run's previews.
        start: the step that the run starts from.
        held_out: the number of held-out samples.
    """
    preview, last = settings.preview_settings, settings.num_steps
    size = (inputs.height or settings.data.height, inputs.width or settings.data.width)
    num_previews = _number_due(settings.preview_every, start, last)
    num_validations = _number_due(settings.validation.every, start, last)
    num_evaluations = _number_due(settings.validation.evaluate_every, start, last)
    if not num_previews + num_validations + num_evaluations:
        return PreviewCost(len(inputs.prompts), size, 0, 0.0)
    one = replace(inputs, prompts=inputs.prompts[:1], images={n: t[:1] for n, t in inputs.images.items()})
    short = preview.model_copy(update={"num_inference_steps": NUM_MEASURED_STEPS})
    times: list[float] = []

    def on_step(done: int, total: int) -> None:
        settle(run.device)
        times.append(time.perf_counter())

    begin = time.perf_counter()
    write_preview(loss.parts, loss.task, short, one, Path(), run.device, writes=False, on_step=on_step)
    call_sec = (times[-1] - times[0]) / (len(times) - 1)
    step_sec = call_sec * len(times) / NUM_MEASURED_STEPS  # some samplers call the network twice a step
    rest_sec = max(0.0, time.perf_counter() - begin - len(times) * call_sec)
    forward_sec = call_sec / (2 if preview.guidance_scale > 1 else 1)
    relative_size = settings.data.height * settings.data.width / (size[0] * size[1])
    num_processes = run.processes.num_processes
    share = -(-held_out // num_processes)
    image_sec = preview.num_inference_steps * step_sec + rest_sec
    evaluated = -(-settings.validation.num_images // (1 if run.sharded else num_processes))
    return PreviewCost(
        len(inputs.prompts),
        size,
        num_previews,
        image_sec,
        num_validations,
        share * settings.validation.num_timesteps_per_sample * forward_sec * relative_size,
        num_evaluations,
        evaluated * image_sec,
    )


def _number_due(every: int, start: int, last: int) -> int:
    """How often something with this period is due after `start`, at the end included."""
    return sum(Periodic(every).due(step, last) for step in range(start + 1, last + 1))
