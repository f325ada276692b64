"""The supported probability paths, and the path of a diffusers scheduler or its configuration.

With x_t = alpha x_0 + sigma noise, a the network's prediction, s = `sigma_data` and c = 1 / sqrt(sigma^2 + s^2):

    path   prediction        alpha, sigma             target                                x_0
    ddpm   epsilon           alpha^2 + sigma^2 = 1    noise                                 (x_t - sigma a) / alpha
    ddpm   v_prediction      alpha^2 + sigma^2 = 1    alpha noise - sigma x_0               alpha x_t - sigma a
    ddpm   sample            alpha^2 + sigma^2 = 1    x_0                                   a
    flow   flow_prediction   alpha + sigma = 1        noise - x_0                           x_t - sigma a
    flow   sample            alpha + sigma = 1        x_0                                   a
    edm    edm               alpha = 1                c (sigma x_0 / s - s noise)           c^2 s^2 x_t + c sigma s a
    vp     epsilon           alpha^2 + sigma^2 = 1    noise                                 (x_t - sigma a) / alpha
    ve     epsilon           alpha = 1                noise                                 x_t - sigma a

The squared error of x_0 is that of a times sigma^2 / alpha^2, sigma^2, 1, sigma^2, 1, (c sigma s)^2, sigma^2 / alpha^2
and sigma^2. Weightings of the loss are defined by that of x_0, see `ldm.diffusion.objective.loss_weight`. A test holds
the classes against this table. All paths with the same sigma / alpha are the same process: x_t / alpha is EDM's x.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ldm.diffusion.edm import EDMPath
from ldm.diffusion.flow import FlowPath
from ldm.diffusion.path import DDPMPath, ProbabilityPath
from ldm.diffusion.ve import VEPath
from ldm.diffusion.vp import VPPath
from ldm.errors import UserError

PATHS: list[type[ProbabilityPath]] = [FlowPath, EDMPath, VPPath, VEPath, DDPMPath]
"""To add a path, write a class in a new file and list it here, before `DDPMPath`, which takes every other scheduler."""


def path_of_scheduler(scheduler: Any) -> ProbabilityPath:
    """The path that a diffusers scheduler samples along."""
    found = (kind.of_scheduler(scheduler) for kind in PATHS)
    path = next((path for path in found if path is not None), None)
    assert path is not None, f"no path supports {type(scheduler).__name__}"
    return path


def path_of_config(config: Mapping[str, Any]) -> ProbabilityPath | None:
    """The path of a model, by its `scheduler_config.json`; None for DDPM's, whose table the scheduler computes.

    Raises:
        UserError: the configuration has a prediction type or a value that the path does not support.
    """
    try:
        found = (kind.of_config(config) for kind in PATHS)
        return next((path for path in found if path is not None), None)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{key} {first['input']!r} in the model's scheduler config is not supported", first["msg"]
        ) from None


def uses_table(config: Mapping[str, Any]) -> bool:
    """Whether DDPM's schedulers sample along a model's path, by its `scheduler_config.json`."""
    path = path_of_config(config)
    return path is None or path.uses_table


def path_name(config: Mapping[str, Any]) -> str:
    """The name of a model's path, by its `scheduler_config.json`."""
    path = path_of_config(config)
    return DDPMPath.name if path is None else path.name


def prediction_type_of(config: Mapping[str, Any]) -> str:
    """What a model predicts, by its `scheduler_config.json`: EDM's schedulers call their own prediction epsilon."""
    path = path_of_config(config)
    return str(config.get("prediction_type", "epsilon")) if path is None else path.prediction_type
