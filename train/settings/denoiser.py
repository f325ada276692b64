"""Settings of the program `denoiser`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ldm.config import Settings, checked_by
from ldm.data.cache.cache_folder import CacheSettings
from ldm.data.captions import CaptionSettings
from ldm.data.degradations import DegradationSettings
from ldm.diffusion.consistency import NUM_FEW_STEPS, DistillSettings
from ldm.diffusion.edm import EDMSettings
from ldm.diffusion.flow import FlowSettings
from ldm.diffusion.interval import EVERYWHERE, check_interval
from ldm.diffusion.objective import ObjectiveSettings
from ldm.diffusion.path import ScheduleSettings
from ldm.diffusion.ve import VESettings
from ldm.diffusion.vp import VPSettings
from ldm.models.fresh import DenoiserShape
from ldm.models.low_resolution import LowResolutionNoise
from ldm.models.setting_limits import MAX_PROMPT_CHUNKS
from ldm.tasks import check_task, find_task

from ..loop.reflow import ReflowSettings
from ..run.trainable import TrainableSettings
from .shared import TrainSettings


class PartsSettings(Settings):
    """Trained parts for training a denoiser from scratch."""

    autoencoder: Path = Field(description="a run of `autoencoder`, or a model's folder")
    text_encoder: Path = Field(description="a run of `text_encoder`, or a model's folder")


class PreviewSettings(Settings):
    """The images generated during training, always from the same noise."""

    prompts: tuple[str, ...] = Field(
        (),
        description="default: the captions of the first images, up to eight, but fewer in a short run: previews then "
        "take about a tenth of the time of its steps",
    )
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    height: int | None = Field(None, ge=8, description="pixels; default: data.height")
    width: int | None = Field(None, ge=8, description="pixels; default: data.width")


class SamplingDefaults(Settings):
    """Default sampling settings of the finished model, written to its ldm.json."""

    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    guidance_interval: Annotated[tuple[float, float], checked_by(check_interval)] = Field(
        EVERYWHERE, description="when guidance is used: [0, 0.5] is the first half of the steps"
    )
    scheduler: str = "dpmpp_2m"


BASE_HAS_ITS_OWN = ("model", "path", "schedule", "flow", "edm", "vp", "ve", "defaults")
"""Settings that only apply to training from scratch."""

TASKS_WITH_SETTINGS = ("upscale", "restore")
"""Tasks that have a section of their name."""
SETTINGS_OF_PATH = ("flow", "edm", "vp", "ve")
"""Groups of settings that only apply to the path of their name. `schedule` may stay when `path=flow` changes a
configuration."""


class DenoiserSettings(TrainSettings, TrainableSettings):
    """Settings of the program `denoiser`."""

    program: Literal["denoiser"]
    task: Annotated[str, checked_by(check_task)] = Field(
        "text-to-image", description="what the denoiser is told besides the prompt"
    )
    base: str | None = Field(
        None,
        description="the model to start from: emoji, a folder, a run, or a Hub id; it determines `model`",
    )
    parts: PartsSettings | None = None
    model: DenoiserShape = DenoiserShape()
    path: Literal["ddpm", "flow", "edm", "vp", "ve"] = Field(
        "ddpm",
        description="how images turn into noise. ddpm: with the settings in `schedule`; flow: rectified flow (Liu et "
        "al. 2022), with those in `flow`; edm: Karras et al. 2022, with those in `edm`; vp and ve: the "
        "variance preserving and exploding SDEs of score-based models (Song et al. 2021), with those in `vp` and `ve`",
    )
    schedule: ScheduleSettings = ScheduleSettings()
    flow: FlowSettings = FlowSettings()
    edm: EDMSettings = EDMSettings()
    vp: VPSettings = VPSettings()
    ve: VESettings = VESettings()
    reflow: ReflowSettings | None = Field(
        None, description="train a rectified flow again, on pairs of its own: Liu et al. 2022, section 2.2"
    )
    objective: ObjectiveSettings = ObjectiveSettings()
    distill: DistillSettings | None = Field(
        None,
        description="train base into a model that needs few sampling steps, in place of objective; {} is Latent "
        "Consistency Distillation with the base's own guidance scale",
    )
    captions: CaptionSettings = CaptionSettings()
    prompt_chunks: int = Field(
        1,
        ge=1,
        le=MAX_PROMPT_CHUNKS,
        description="chunks of 75 tokens (the context less two) that captions may fill",
    )
    upscale: LowResolutionNoise = Field(
        LowResolutionNoise(), description="for task: upscale, the noise of the low-resolution images"
    )
    restore: DegradationSettings = Field(
        DegradationSettings(), description="for task: restore, how the images are damaged"
    )
    cache: CacheSettings = CacheSettings()
    preview: PreviewSettings = PreviewSettings()
    defaults: SamplingDefaults = SamplingDefaults()

    def model_post_init(self, _: Any) -> None:
        if (self.base is None) == (self.parts is None):
            raise ValueError("give either base: MODEL or parts: {autoencoder, text_encoder}")
        if self.cache.mask_variants and find_task(self.task).inputs.drawn_image is None:
            raise ValueError(f"cache.mask_variants is for tasks with masks, which {self.task} has not")
        for name in TASKS_WITH_SETTINGS:
            if name != self.task and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is given, but it is for task: {name}: leave it out")
        for name in BASE_HAS_ITS_OWN if self.base is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is given, but base determines it: leave it out")
        if self.reflow is not None and self.task != "text-to-image":
            raise ValueError(f"reflow needs task text-to-image, not {self.task}")
        if self.objective.timestep_distribution == "loss_aware":
            self._check_loss_aware()
        if self.distill is not None and self.reflow is not None:
            raise ValueError("distill and reflow are both given: train one after the other")
        if self.distill is not None:
            self._check_distill(self.distill)
        if self.optim.weights == "bfloat16" and self.is_adapter:
            raise ValueError(
                f"optim.weights = bfloat16 with trainable: {self.trainable}, which has few weights: leave it out"
            )
        if self.optim.optimizer == "prodigy" and self.text_encoder_learning_rate is not None:
            raise ValueError(
                "text_encoder_learning_rate with optim.optimizer = prodigy, which has one rate for all: leave it out"
            )
        if self.base is None:
            self._check_path()

    @property
    def preview_settings(self) -> PreviewSettings:
        """How previews are made: those of a distilled model with few steps, unless the settings say otherwise."""
        if self.distill is None:
            return self.preview
        few: dict[str, Any] = {"num_inference_steps": NUM_FEW_STEPS}
        if not self.distill.embed_guidance:
            few["guidance_scale"] = 1.0
        return self.preview.model_copy(
            update={key: value for key, value in few.items() if key not in self.preview.model_fields_set}
        )

    @property
    def task_settings(self) -> Settings | None:
        """The section of the task; None for a task without one."""
        section: Settings | None = getattr(self, self.task) if self.task in TASKS_WITH_SETTINGS else None
        return section

    def _check_loss_aware(self) -> None:
        if self.path != "ddpm":
            raise ValueError(f"objective.timestep_distribution loss_aware needs path ddpm, not {self.path}")
        if self.objective.timestep_shift != 1 or self.objective.shift_by_size:
            raise ValueError(
                "objective.timestep_shift has no effect with timestep_distribution loss_aware: leave it out"
            )

    def _check_distill(self, distill: DistillSettings) -> None:
        if self.base is None:
            raise ValueError("distill is given, but there is no base to distill: set base: MODEL")
        if self.objective != ObjectiveSettings():
            raise ValueError("objective has no effect with distill: leave it out")
        if self.trains_text_encoder or self.trainable == "controlnet":
            raise ValueError(
                f"distill trains the UNet, not trainable: {self.trainable}: set trainable: unet, or lora without "
                "lora.text_encoder"
            )
        if distill.embed_guidance and self.trainable != "unet":
            raise ValueError("distill.embed_guidance adds weights to the UNet: set trainable: unet")
        if distill.target == "average" and self.optim.average.widths:
            raise ValueError(
                "distill.target average needs one average with optim.ema_decay: leave widths out"
            )
        if self.optim.weights == "bfloat16":
            raise ValueError("optim.weights = bfloat16 cannot be used with distill: leave it out")
        if distill.target == "average" and self.sharding == "full":
            raise ValueError("distill.target average cannot be used with sharding: full")

    def _check_path(self) -> None:
        for name in SETTINGS_OF_PATH:
            if self.path != name and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is given, but path is {self.path}: set path={name} or leave {name} out"
                )
        if self.reflow is not None and self.path != "flow":
            raise ValueError(f"reflow is given, but path is {self.path}: set path=flow or leave reflow out")
        if self.schedule.learn_variance and self.task != "text-to-image":
            raise ValueError(
                "schedule.learn_variance needs task text-to-image: a saved UNet does not say which channels it has"
            )
        if self.path != "edm":
            return
        if self.edm.sigma_data is None and (self.data.streaming or not self.cache.enabled):
            raise ValueError("edm.sigma_data is measured on the cache, which this run has not: give a number")
        if self.objective.timestep_distribution != "uniform" or self.objective.timestep_shift != 1:
            raise ValueError(
                "path edm draws log(sigma) by edm.log_mean and edm.log_std: leave the timesteps' settings out"
            )
        if self.objective.weighting != "none":
            raise ValueError("path edm has a weighting of its own: leave objective.weighting out")
