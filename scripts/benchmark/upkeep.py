"""The part of a training step after the gradient: AdamW, and the average of the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from . import training
from .models import MEDIUM, SMALLEST, Shape, make_unet
from .rows import Row, result_of, row_of, taken_of
from .samples import Scale, Setting, machine
from .workers import Answer, Work, repeated, take_turns

SHAPES: Mapping[Scale, tuple[str, Shape]] = {
    "full": ("36M UNet", MEDIUM),
    "quick": ("36M UNet", MEDIUM),
    "smallest": ("smallest UNet", SMALLEST),
}
OPTIMIZER, AVERAGE = "optimizer step", "average of the weights"
GOALS = {OPTIMIZER: 2.0, AVERAGE: 2.2}
TIMES = 10
"""Steps per turn, since one is short."""


def upkeep(setting: Setting) -> dict[str, Any]:
    """Time the optimizer step and the averaging step against diffusers' way, on the weights of a UNet."""
    name, shape = SHAPES[setting.scale]
    makers = {OPTIMIZER: (make_our_step, make_their_step), AVERAGE: (make_our_average, make_their_average)}
    rows: list[Row] = []
    records: dict[str, Any] = {}
    for part, (ours, theirs) in makers.items():
        sides = {
            "diffusers' way": repeated(theirs, shape, setting.device),
            "ldm": repeated(ours, shape, setting.device),
        }
        taken = take_turns(sides, setting.rounds, setting.device)
        rows.append(row_of(f"{part}, {name}", taken, "ldm", "diffusers' way", GOALS[part]))
        records[part] = taken_of(taken)
    return result_of("upkeep", rows, device=setting.device, sides=records, machine=machine())


def trained(shape: Shape, device: str) -> nn.Module:
    """A UNet in which every weight has a gradient, the same in every process."""
    torch.manual_seed(0)
    unet: nn.Module = make_unet(shape, 256).to(device).train()
    for parameter in unet.parameters():
        parameter.grad = 1e-3 * torch.ones_like(parameter)
    return unet


def answer_of(tensors: Any) -> Answer:
    """One number per tensor, to compare the two sides."""
    output: Answer = torch.stack([tensor.detach().float().mean() for tensor in tensors]).cpu().numpy()
    return output


def make_our_step(shape: Shape, device: str) -> Work:
    unet = trained(shape, device)
    settings = training("settings.shared").OptimSettings(weight_decay=0.0)
    return stepping(unet, training("loop.optim").make_optimizer(unet.parameters(), settings))


def make_their_step(shape: Shape, device: str) -> Work:
    unet = trained(shape, device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    return stepping(unet, optimizer)


def stepping(unet: nn.Module, optimizer: torch.optim.Optimizer) -> Work:
    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        for _ in range(TIMES):
            optimizer.step()
        return answer_of(unet.parameters()), {}

    return work


def make_our_average(shape: Shape, device: str) -> Work:
    unet = trained(shape, device)
    average = training("loop.averages").WeightAverages(unet, 0.999)
    moved(unet)
    step = 0

    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        nonlocal step
        for _ in range(TIMES):
            step += 1
            average.update(step)
        return answer_of(average.tensors().values()), {}

    return work


def make_their_average(shape: Shape, device: str) -> Work:
    from diffusers.training_utils import EMAModel

    unet = trained(shape, device)
    average = EMAModel(unet.parameters(), decay=0.999)
    average.step(
        unet.parameters()
    )  # its first step copies the weights; from the second on it does the same as ours
    moved(unet)

    def work(warming_up: bool) -> tuple[Answer, dict[str, float]]:
        for _ in range(TIMES):
            average.step(unet.parameters())
        return answer_of(average.shadow_params), {}

    return work


@torch.no_grad()
def moved(unet: nn.Module) -> None:
    for parameter in unet.parameters():
        parameter.add_(0.1)
