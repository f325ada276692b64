"""Create a diffusers scheduler by short name for a model's path, and check that the two are compatible."""

import inspect
from collections.abc import Mapping
from typing import Any

from ldm.config import validate
from ldm.diffusion.path import ScheduleSettings
from ldm.diffusion.scheduler_names import SCHEDULERS, SchedulerEntry
from ldm.errors import UserError, unknown_name

SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def make_scheduler(name: str, config: Mapping[str, Any], *, karras: bool = False) -> Any:
    """The diffusers scheduler with a short name, on the model's path.

    Args:
        name: a key of `SCHEDULERS`.
        config: the model's `scheduler_config.json`: betas, prediction type, timestep spacing.
        karras: space the noise levels by Eq. 5 of Karras et al. 2022.

    Raises:
        UserError: the name is unknown, a required package is not installed, or the scheduler does not support the
            model or `karras`.
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
    """The training path defined by a model's scheduler config; missing values get diffusers' defaults.

    Args:
        model: the model's name, for error messages.

    Raises:
        UserError: training does not support the path or the prediction type.
    """
    file = f"{model}: scheduler/scheduler_config.json"
    if config.get("trained_betas") is not None:
        raise UserError(
            f"{file}: trained_betas is set",
            "choose a base without it, training only supports a beta_schedule",
        )
    said = {**_defaults_of(_scheduler_class(SCHEDULERS["ddim"])), **_said(config)}
    return validate(ScheduleSettings, {key: said[key] for key in ScheduleSettings.model_fields}, where=file)


def schedulers_for(config: Mapping[str, Any]) -> list[str]:
    """The names of all samplers that support this scheduler config and whose required packages are installed."""
    return [name for name, entry in SCHEDULERS.items() if entry.available and not _misfit(entry, config)]


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values explicitly set in a config; a scheduler instance's config also holds its class's defaults."""
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
    """Sampler settings that the model's scheduler config may contain for another sampler, set explicitly.

    Latents are unbounded, so predictions are not clipped to [-1, 1] unless the model's config says so; two of
    diffusers' schedulers clip by default.
    """
    known = _settings_of(cls)
    spacing = {key: karras and key == "use_karras_sigmas" for key in SPACINGS if key in known}
    return {"clip_sample": config.get("clip_sample", False), **spacing}


def _check_fit(name: str, entry: SchedulerEntry, config: Mapping[str, Any]) -> None:
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"prediction_type {prediction_type!r} in the model's scheduler config is not supported",
            "use a model with epsilon, v_prediction or sample",
        )
    if _zero_snr(config) and prediction_type == "epsilon":
        raise UserError(
            "the model's scheduler config has rescale_betas_zero_snr with prediction_type epsilon",
            "epsilon carries no information at zero SNR, set prediction_type to v_prediction or sample",
        )
    misfit = _misfit(entry, config)
    if misfit:
        raise UserError(f"scheduler {name!r} {misfit}", f"use {', '.join(schedulers_for(config))}")


def _misfit(entry: SchedulerEntry, config: Mapping[str, Any]) -> str:
    """Why a sampler does not support the model's path, or an empty string."""
    if config.get("prediction_type") == "sample" and not entry.reads_sample:
        return "does not support models with prediction type sample"
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
