"""The settings that all training programs share; each program adds its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ldm.config import Settings
from ldm.data.prepare import DataSettings
from ldm.data.sources.reading import SourceSettings

from ..loop.averages import AverageSettings
from ..loop.validation import ValidationSettings
from ..run.trackers import TrackerName

OptimizerName = Literal["adamw", "adamw_8bit", "prodigy"]
"""torch's fused AdamW, bitsandbytes' AdamW with 8-bit moments, or prodigyopt's Prodigy."""

MASKS = ("masks", "alpha_mask")


class OptimSettings(Settings):
    """AdamW, its learning-rate schedule, and the average of the weights."""

    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw_8bit needs bitsandbytes and CUDA. prodigy needs prodigyopt and finds the learning rate "
        "itself (Mishchenko & Defazio 2024); learning_rate is then a factor, usually 1",
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the trained networks. bfloat16: 2 bytes each without a float32 copy, rounded stochastically "
        "(Gupta et al. 2015), so that small steps count; gradients are bfloat16 as well",
    )
    moments: Literal["float32", "8bit"] = Field(
        "float32",
        description="AdamW's two moments of each weight. 8bit: a byte each instead of four, on any device (Dettmers et "
        "al. 2022)",
    )
    learning_rate: float = Field(1e-4, gt=0)
    lr_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    num_warmup_steps: int = Field(100, ge=0, description="optimizer steps of linear warm-up")
    final_lr_fraction: float = Field(
        0.01, ge=0, le=1, description="end of the cosine, as a fraction of learning_rate"
    )
    weight_decay: float = Field(0.01, ge=0)
    beta2: float = Field(0.99, gt=0, lt=1, description="AdamW's decay of the second moment")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="a longer gradient is scaled down to it; null: it is not"
    )
    fused_backward: bool = Field(
        False,
        description="move each weight within the backward pass and free its gradient at once: the same result in less "
        "memory. Only with max_grad_norm null, batches in one piece, one process, and without fp16",
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the weights' moving average; 0 turns it off"
    )
    average: AverageSettings = AverageSettings()

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        fraction = self.final_lr_fraction
        if (
            self.lr_schedule == "constant"
            and fraction != OptimSettings.model_fields["final_lr_fraction"].default
        ):
            raise ValueError(
                f"final_lr_fraction = {fraction} has no effect on a constant learning rate: leave it out, "
                "or set lr_schedule=cosine"
            )
        for name in ("weights", "moments"):
            value = getattr(self, name)
            if self.optimizer != "adamw" and value != "float32":
                raise ValueError(
                    f"{name} = {value} is for optimizer = adamw: leave it out, or leave out optimizer = "
                    f"{self.optimizer}"
                )
        if self.optimizer == "prodigy" and not 0.1 <= self.learning_rate <= 10:
            raise ValueError(
                f"learning_rate = {self.learning_rate} with optimizer = prodigy, which finds the rate itself and takes "
                "learning_rate as a factor: set learning_rate=1"
            )
        if self.fused_backward and self.optimizer != "adamw":
            raise ValueError(f"fused_backward with optimizer = {self.optimizer}: use adamw")
        if self.fused_backward and self.max_grad_norm is not None:
            raise ValueError(
                f"fused_backward with max_grad_norm = {self.max_grad_norm}, which needs all gradients at once: set "
                "max_grad_norm=null"
            )
        if self.average.widths and not self.ema_decay:
            raise ValueError(
                "ema_decay = 0 turns averages off, but average.widths asks for some: leave one out"
            )
        return self


class TrainSettings(Settings):
    """The settings of every program."""

    program: Literal["autoencoder", "text_encoder", "denoiser"]
    run_dir: Path = Field(description="the run's directory; rerun with the same one to resume")
    seed: int = Field(0, ge=0, lt=2**63)
    num_steps: int = Field(gt=0, description="optimizer steps in total")
    global_batch_size: int = Field(32, gt=0, description="samples per optimizer step, over all processes")
    max_micro_batch: int = Field(64, gt=0, description="the most samples per forward pass of a process")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="bf16 and fp16 need a CUDA device; weights stay float32"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto: CUDA if available")
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: each of several processes holds a shard of the weights and of the optimizer (FSDP2)",
    )
    log_every: int = Field(20, gt=0, description="optimizer steps between rows of metrics.jsonl")
    save_every: int = Field(500, gt=0, description="optimizer steps between checkpoints")
    preview_every: int = Field(500, gt=0, description="optimizer steps between preview images")
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest checkpoints are kept")
    keep_every: int | None = Field(
        None, gt=0, description="optimizer steps between further checkpoints that are never removed"
    )
    max_bad_steps: int = Field(
        10,
        gt=0,
        description="end the run after this many steps skipped for a loss or gradient that is not finite",
    )
    fork_from: Path | None = Field(None, description="a run or checkpoint whose weights this run starts from")
    data: DataSettings
    optim: OptimSettings = OptimSettings()
    validation: ValidationSettings = ValidationSettings()
    trackers: tuple[TrackerName, ...] = Field(
        (), description="where the logged numbers also go: tensorboard, wandb"
    )

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        for name in ("every", "evaluate_every"):
            if getattr(self.validation, name) and not self.data.holdout_fraction:
                raise ValueError(
                    f"validation.{name} needs held-out samples: set data.holdout_fraction above 0"
                )
        return self

    @model_validator(mode="after")
    def _check_program(self) -> Self:
        for key in _without_effect(self):
            raise ValueError(f"{key} has no effect in the program {self.program}: leave it out")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.optim.weights == "bfloat16" and self.program != "denoiser":
            raise ValueError(f"optim.weights = bfloat16 in the program {self.program}: leave it out")
        if self.optim.weights == "bfloat16" and self.mixed_precision == "fp16":
            raise ValueError("optim.weights = bfloat16 with mixed_precision = fp16: set mixed_precision=bf16")
        return self

    @model_validator(mode="after")
    def _check_prodigy(self) -> Self:
        if self.optim.optimizer == "prodigy" and self.sharding == "full":
            raise ValueError("optim.optimizer = prodigy with sharding: full: use adamw")
        return self

    @model_validator(mode="after")
    def _check_fused_backward(self) -> Self:
        if not self.optim.fused_backward:
            return self
        if self.max_micro_batch < self.global_batch_size:
            raise ValueError(
                f"optim.fused_backward with max_micro_batch = {self.max_micro_batch} of global_batch_size = "
                f"{self.global_batch_size}, whose gradients are accumulated: make them equal"
            )
        if self.mixed_precision == "fp16":
            raise ValueError(
                "optim.fused_backward with mixed_precision = fp16: set mixed_precision=bf16 or no"
            )
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        num_warmup_steps = self.optim.num_warmup_steps
        if num_warmup_steps and num_warmup_steps >= self.num_steps:
            raise ValueError(
                f"optim.num_warmup_steps = {num_warmup_steps} of num_steps = {self.num_steps}: the learning rate "
                f"would never stop rising; set optim.num_warmup_steps={self.num_steps // 20} or a larger num_steps"
            )
        return self


def _without_effect(settings: TrainSettings) -> Iterator[str]:
    """The keys that are set but not used by the program."""
    if settings.program == "denoiser":
        return
    for name, field in ValidationSettings.model_fields.items():
        if getattr(settings.validation, name) != field.default:
            yield f"validation.{name}"
    unread = MASKS if settings.program == "autoencoder" else (*MASKS, "loss_weight")
    for number, source in enumerate(settings.data.sources):
        for name in unread:
            if getattr(source, name) != SourceSettings.model_fields[name].default:
                yield f"data.sources.{number}.{name}"
