"""Tiny models for tasks with input images: all input channels have random weights."""

from collections.abc import Callable
from pathlib import Path

import torch

from ldm.models.fresh import widen_input
from ldm.models.parts import ModelParts
from tests.support.tiny_models import make_sd1

TASKS = {"inpaint": 9, "edit": 8}
"""Input channels by task."""


def make_task_model(folder: Path, task: str, make: Callable[[Path], ModelParts] = make_sd1) -> ModelParts:
    """A tiny model of a task, made from one of text-to-image."""
    return for_task(make(folder), task)


def for_task(parts: ModelParts, task: str) -> ModelParts:
    """The same model with random weights for more input channels."""
    widen_input(parts.denoiser.unet, TASKS[task])
    torch.manual_seed(1)
    torch.nn.init.normal_(parts.denoiser.unet.conv_in.weight, std=0.1)
    parts.task = task
    return parts
