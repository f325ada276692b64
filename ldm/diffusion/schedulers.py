"""The diffusers scheduler of a short name, on the path of a given model, or why it cannot be had."""

import inspect
from collections.abc import Mapping
from typing import Any

from ldm.config import validate
from ldm.diffusion.path import ScheduleSettings
from ldm.diffusion.scheduler_names import SCHEDULERS, SchedulerEntry
from ldm.errors import UserError, unknown_name

SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def make_scheduler(name: str, config: Mapping[str, Any], *, karras: bool = False) -> Any:
    """The diffusers scheduler of a short name, on the model's own path.

    Args:
        name: a key of `SCHEDULERS`.
        config: the model's `scheduler_config.json`: betas, prediction type, spacing of the timesteps.
        karras: space the noise levels as Eq. 5 of Karras et al. 2022 does.

    Raises:
        UserError: the name is unknown, needs an absent package, or cannot do what the model or `karras` asks.
    """
    entry = _entry(name)
    config = _said(config)
    cls = _scheduler_class(entry)
    _check_fit(name, entry, config)
    if karras and "use_karras_sigmas" not in _settings_of(cls):
        raise UserError(f"scheduler {name!r} has no Karras spacing", f"use {_names(karras=True)}")
    settings = _sampler_settings(cls, config, karras) | dict(entry.overrides)
    try:
        return cls.from_config({**config, **settings})
    except (NotImplementedError, ValueError, TypeError) as error:
        raise UserError(f"scheduler {name!r} cannot follow the model's scheduler config: {error}") from error


def training_path(config: Mapping[str, Any], model: str) -> ScheduleSettings:
    """The path that a model's scheduler config gives, to train on; what it does not say is diffusers' default.

    Args:
        model: whose config it is, for what is told.

    Raises:
        UserError: it asks for a path or a prediction type that training does not know.
    """
    file = f"{model}: scheduler/scheduler_config.json"
    if config.get("trained_betas") is not None:
        raise UserError(
            f"{file}: trained_betas is given", "choose a base without: training follows a beta_schedule alone"
        )
    said = {**_defaults_of(_scheduler_class(SCHEDULERS["ddim"])), **_said(config)}
    return validate(ScheduleSettings, {key: said[key] for key in ScheduleSettings.model_fields}, where=file)


def schedulers_for(config: Mapping[str, Any]) -> list[str]:
    """The names that can sample a model with this scheduler config here, needed packages included."""
    return [name for name, entry in SCHEDULERS.items() if entry.available and not _misfit(entry, config)]


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says. The config of a scheduler in memory holds its class's defaults too, and their names."""
    unsaid = {"_use_default_values", *config.get("_use_default_values", ())}
    return {key: value for key, value in config.items() if key not in unsaid}


def _entry(name: str) -> SchedulerEntry:
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    entry = SCHEDULERS[name]
    if not entry.available:
        raise UserError(f"scheduler {name!r} needs {entry.requires}", f"pip install {entry.requires}")
    return entry


def _scheduler_class(entry: SchedulerEntry) -> Any:
    import diffusers

    return getattr(diffusers, entry.class_name)


def _settings_of(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


def _defaults_of(cls: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(cls.__init__).parameters.items()}


def _sampler_settings(cls: Any, config: Mapping[str, Any], karras: bool) -> dict[str, Any]:
    """What a model's scheduler config may say of another sampler, set plainly.

    Latents have no bounds, so unless the model says otherwise predictions are not clipped to [-1, 1], which
    two of diffusers' schedulers do by default.
    """
    known = _settings_of(cls)
    spacing = {key: karras and key == "use_karras_sigmas" for key in SPACINGS if key in known}
    return {"clip_sample": config.get("clip_sample", False), **spacing}


def _check_fit(name: str, entry: SchedulerEntry, config: Mapping[str, Any]) -> None:
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"prediction_type {prediction_type!r} in the model's scheduler config is not supported",
            "epsilon, v_prediction and sample are",
        )
    if _zero_snr(config) and prediction_type == "epsilon":
        raise UserError(
            "the model's scheduler config has rescale_betas_zero_snr with prediction_type epsilon",
            "at zero SNR epsilon says nothing: it must be v_prediction or sample",
        )
    misfit = _misfit(entry, config)
    if misfit:
        raise UserError(f"scheduler {name!r} {misfit}", f"use {', '.join(schedulers_for(config))}")


def _misfit(entry: SchedulerEntry, config: Mapping[str, Any]) -> str:
    """Why a sampler cannot follow the model's path, or an empty string."""
    if config.get("prediction_type") == "sample" and not entry.reads_sample:
        return "does not take a model of prediction type sample"
    if _zero_snr(config) and "rescale_betas_zero_snr" not in _settings_of(_scheduler_class(entry)):
        return "would ignore the model's zero terminal SNR"
    return ""


def _zero_snr(config: Mapping[str, Any]) -> bool:
    return bool(config.get("rescale_betas_zero_snr"))


def _names(*, karras: bool) -> str:
    usable = [(name, entry) for name, entry in SCHEDULERS.items() if entry.available]
    return ", ".join(
        n for n, e in usable if ("use_karras_sigmas" in _settings_of(_scheduler_class(e))) is karras
    )
