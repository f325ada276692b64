"""What the settings ask of the devices: Accelerate set up on them, and whether the weights are cut over several."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment

from ldm.errors import UserError

from ..settings.shared import TrainSettings


def asked_to_shard(settings: TrainSettings) -> bool:
    """Whether the settings ask for it, or the configuration that `accelerate launch` was given.

    Raises:
        UserError: these settings do not go with it.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not launched and settings.sharding == "none":
        return False
    if launched and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP of version 1 was asked for", "set fsdp_version: 2, as configs/accelerate/fsdp2.yaml"
        )
    if settings.program != "denoiser":
        raise UserError(f"sharding of the program {settings.program}", "only the denoiser is sharded")
    if settings.mixed_precision == "fp16":
        raise UserError("sharding with mixed_precision = 'fp16'", "set mixed_precision=bf16 or no")
    if getattr(settings, "compile", False):
        raise UserError("sharding with compile = true", "set compile=false")
    if settings.optim.optimizer != "adamw":
        raise UserError(f"sharding with optim.optimizer = {settings.optim.optimizer!r}", "use adamw")
    return True


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate on CUDA where there is one, else on the CPU.

    Raises:
        UserError: bf16 or fp16 was asked for without a CUDA device, or there are fewer devices than processes.
    """
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if cpu and settings.mixed_precision != "no":
        raise UserError(
            f"mixed_precision = {settings.mixed_precision!r} without a CUDA device", "set mixed_precision=no"
        )
    num_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and num_here > torch.cuda.device_count():
        raise UserError(
            f"{num_here} processes on {torch.cuda.device_count()} CUDA devices",
            "start as many as there are devices",
        )
    # `asked_to_shard` has read the first; the second would divide a gradient that the loop has weighed already
    with patch_environment(accelerate_use_fsdp="false", accelerate_gradient_accumulation_steps="1"):
        accelerator = Accelerator(cpu=cpu, mixed_precision=settings.mixed_precision)
    # Accelerate can come up as one process under a launcher of two; each would then train a model of its own.
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    return accelerator
