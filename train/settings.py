"""The settings that every training program shares; each program adds its own."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ldm.config import Settings


class DataSettings(Settings):
    """The captioned images."""

    path: Path = Field(
        description="folder with metadata.jsonl (file_name, text) or .txt files beside the images"
    )
    height: int = Field(64, ge=8, description="pixels; images are scaled to cover and cropped in the middle")
    width: int = Field(64, ge=8, description="pixels")
    flip: bool = Field(False, description="mirror images at random where the caption stays true")
    holdout_fraction: float = Field(0.0, ge=0, lt=1, description="share kept out of training and measured on")
    num_workers: int = Field(0, ge=0, description="loader processes; 0 loads in the training process")


class OptimSettings(Settings):
    """AdamW, its learning rate over the optimizer steps, and the average of the weights."""

    learning_rate: float = Field(1e-4, gt=0)
    lr_schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    num_warmup_steps: int = Field(100, ge=0, description="optimizer steps of linear warm-up")
    final_lr_fraction: float = Field(0.01, ge=0, le=1, description="where the cosine ends, of learning_rate")
    weight_decay: float = Field(0.01, ge=0)
    beta2: float = Field(0.99, gt=0, lt=1, description="AdamW's second decay")
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the weights' moving average; 0 turns it off")


class TrainSettings(Settings):
    """What every program needs to know."""

    program: Literal["autoencoder", "text_encoder", "denoiser"]
    run_dir: Path = Field(description="where the run's files go; rerunning with the same one resumes")
    seed: int = Field(0, ge=0)
    num_steps: int = Field(gt=0, description="optimizer steps in all")
    global_batch_size: int = Field(32, gt=0, description="samples an optimizer step, over all processes")
    max_micro_batch: int = Field(64, gt=0, description="samples a process puts through the network at once")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16 needs a CUDA device; weights stay float32"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto: CUDA where there is one")
    log_every: int = Field(20, gt=0, description="optimizer steps")
    save_every: int = Field(500, gt=0, description="optimizer steps between checkpoints")
    preview_every: int = Field(500, gt=0, description="optimizer steps between preview pictures")
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest checkpoints stay")
    data: DataSettings
    optim: OptimSettings = OptimSettings()
