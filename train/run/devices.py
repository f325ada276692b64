"""Accelerate set up as the settings ask, and whether the weights are sharded."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment

from ldm.errors import UserError

from ..loop.processes import num_launched_processes, num_processes_on_this_machine
from ..settings.shared import TrainSettings


def asked_to_shard(settings: TrainSettings) -> bool:
    """Whether the settings, or the configuration given to `accelerate launch`, ask for sharding.

    Raises:
        UserError: sharding does not work with these settings.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not launched and settings.sharding == "none":
        return False
    if launched and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP version 1 is not supported", "set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml"
        )
    if settings.program != "denoiser":
        raise UserError(f"sharding the program {settings.program}", "only the denoiser can be sharded")
    if settings.mixed_precision == "fp16":
        raise UserError("sharding with mixed_precision = 'fp16'", "set mixed_precision=bf16 or no")
    if getattr(settings, "compile", False):
        raise UserError("sharding with compile = true", "set compile=false")
    for name, usual in (("optimizer", "adamw"), ("weights", "float32"), ("moments", "float32")):
        if (value := getattr(settings.optim, name)) != usual:
            raise UserError(f"sharding with optim.{name} = {value!r}", f"use {usual}")
    return True


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Accelerate on CUDA if available, else on the CPU.

    Raises:
        UserError: bf16 or fp16 was requested without a CUDA device, or there are more processes than devices.
    """
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if cpu and settings.mixed_precision != "no":
        raise UserError(
            f"mixed_precision = {settings.mixed_precision!r} without a CUDA device", "set mixed_precision=no"
        )
    num_here = num_processes_on_this_machine()
    if not cpu and num_here > torch.cuda.device_count():
        raise UserError(
            f"{num_here} processes on {torch.cuda.device_count()} CUDA devices",
            "start one process per device",
        )
    # `asked_to_shard` handles the first; the second would divide a gradient that the loop has already weighted
    with patch_environment(accelerate_use_fsdp="false", accelerate_gradient_accumulation_steps="1"):
        accelerator = Accelerator(cpu=cpu, mixed_precision=settings.mixed_precision)
    if settings.optim.fused_backward and accelerator.num_processes > 1:
        raise UserError(
            f"optim.fused_backward in {accelerator.num_processes} processes, whose gradients are averaged",
            "set optim.fused_backward=false",
        )
    # Accelerate can come up as one process under a launcher of two; each would then train a separate model
    assert accelerator.num_processes == num_launched_processes()
    return accelerator
