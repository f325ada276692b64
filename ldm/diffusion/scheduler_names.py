"""The samplers by short name, each a diffusers scheduler with fixed settings.

This module has no heavy imports, so the command line can list the samplers quickly. Schedulers for other
models are not included: TCD, inversion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

OWN_SCHEDULER = "model"
"""The sampler that a model's own scheduler config describes, with all of its settings."""


@dataclass(frozen=True)
class SchedulerEntry:
    """One sampler.

    Attributes:
        class_name: the scheduler in `diffusers`.
        title: its name in other programs, as in the `Sampler:` field of a PNG.
        overrides: settings that define this sampler; they override the model's scheduler config.
        stochastic: whether it adds new noise at each step.
        reads_sample: whether it supports denoisers with prediction type `sample`.
        requires: the package it needs besides diffusers, or None.
        on_path: the scheduler on paths other than DDPM's, by the path's name.
        on_other_path: whether this entry is one of those.
        for_few_steps: whether it is for models that were distilled into consistency models, and no others.
    """

    class_name: str
    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    reads_sample: bool = True
    requires: str | None = None
    on_path: Mapping[str, str] = field(default_factory=dict)
    on_other_path: bool = False
    for_few_steps: bool = False

    @property
    def available(self) -> bool:
        """Whether the required package is installed."""
        return self.requires is None or find_spec(self.requires) is not None

    @property
    def class_names(self) -> set[str]:
        """The schedulers on all paths; those of `OWN_CLASSES` are ours, all others are in `diffusers`."""
        return {self.class_name, *self.on_path.values()}

    def along(self, path: str) -> "SchedulerEntry | None":
        """This sampler on a path; None if there is none."""
        if path == "ddpm":
            return self
        class_name = self.on_path.get(path)
        return None if class_name is None else replace(self, class_name=class_name, on_other_path=True)


_MULTISTEP = "DPMSolverMultistepScheduler"
_EDM_MULTISTEP = "EDMDPMSolverMultistepScheduler"
_ORDER_2 = {"solver_order": 2, "solver_type": "midpoint"}

SCHEDULERS: dict[str, SchedulerEntry] = {
    "ddpm": SchedulerEntry("DDPMScheduler", "DDPM", stochastic=True),
    "ddim": SchedulerEntry("DDIMScheduler", "DDIM"),
    "euler": SchedulerEntry(
        "EulerDiscreteScheduler",
        "Euler",
        on_path={"flow": "FlowMatchEulerDiscreteScheduler", "edm": "EDMEulerScheduler"},
    ),
    "euler_a": SchedulerEntry(
        "EulerAncestralDiscreteScheduler", "Euler a", stochastic=True, reads_sample=False
    ),
    "heun": SchedulerEntry(
        "HeunDiscreteScheduler",
        "Heun",
        reads_sample=False,
        on_path={"flow": "FlowMatchHeunDiscreteScheduler", "edm": "EDMHeunScheduler"},
    ),
    "dpmpp_2m": SchedulerEntry(
        _MULTISTEP,
        "DPM++ 2M",
        {"algorithm_type": "dpmsolver++", **_ORDER_2},
        on_path={"flow": _MULTISTEP, "edm": _EDM_MULTISTEP},
    ),
    "dpmpp_2m_sde": SchedulerEntry(
        _MULTISTEP,
        "DPM++ 2M SDE",
        {"algorithm_type": "sde-dpmsolver++", **_ORDER_2},
        stochastic=True,
        on_path={"flow": _MULTISTEP, "edm": _EDM_MULTISTEP},
    ),
    "dpmpp_2s": SchedulerEntry(
        "DPMSolverSinglestepScheduler",
        "DPM++ 2S",
        {"algorithm_type": "dpmsolver++", "lower_order_final": True, **_ORDER_2},
        on_path={"flow": "DPMSolverSinglestepScheduler"},
    ),
    "dpmpp_sde": SchedulerEntry(
        "DPMSolverSDEScheduler", "DPM++ SDE", stochastic=True, reads_sample=False, requires="torchsde"
    ),
    "pc": SchedulerEntry("PredictorCorrectorScheduler", "PC", stochastic=True),
    "kdpm2": SchedulerEntry("KDPM2DiscreteScheduler", "DPM2", reads_sample=False),
    "kdpm2_a": SchedulerEntry(
        "KDPM2AncestralDiscreteScheduler", "DPM2 a", stochastic=True, reads_sample=False
    ),
    "unipc": SchedulerEntry(
        "UniPCMultistepScheduler",
        "UniPC",
        {"solver_order": 2, "solver_type": "bh2"},
        on_path={"flow": "UniPCMultistepScheduler"},
    ),
    "pndm": SchedulerEntry("PNDMScheduler", "PLMS", {"skip_prk_steps": True}, reads_sample=False),
    "lms": SchedulerEntry("LMSDiscreteScheduler", "LMS", requires="scipy"),
    "deis": SchedulerEntry(
        "DEISMultistepScheduler",
        "DEIS",
        {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"},
        on_path={"flow": "DEISMultistepScheduler"},
    ),
    "sa_solver": SchedulerEntry(
        "SASolverScheduler",
        "SA-Solver",
        {"algorithm_type": "data_prediction"},
        stochastic=True,
        on_path={"flow": "SASolverScheduler"},
    ),
    "lcm": SchedulerEntry(
        "LCMScheduler",
        "LCM",
        stochastic=True,
        on_path={"flow": "FlowMatchLCMScheduler"},
        for_few_steps=True,
    ),
}
