"""Create a diffusers scheduler by short name for a model's path, and check that the two are compatible."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ldm.config import validate
from ldm.diffusion.consistency import TIMESTEP_SCALING
from ldm.diffusion.path import LEARNED_VARIANCE, DDPMPath, ProbabilityPath, ScheduleSettings
from ldm.diffusion.paths import path_name, path_of_config, uses_table
from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS, SchedulerEntry
from ldm.errors import UserError, unknown_name, warn

SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Settings that space the noise levels in another way than the model's timesteps are."""

CORRECTIONS = {"steps_offset": 1, "clip_sample": False}
"""What `StableDiffusionPipeline` sets in every scheduler that it is given: configurations from before 2023 lack it.
Latents are unbounded, so predictions are never clipped. A test compares this with the stock pipeline."""

PATH_KEYS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr",
)  # fmt: skip
"""Settings that describe the model, not the sampler. One that a file leaves out has the default of the file's own
class, whichever sampler is used."""

OWN_CLASSES = {
    "EDMHeunScheduler": "ldm.diffusion.edm_heun",
    "PredictorCorrectorScheduler": "ldm.diffusion.predictor_corrector",
}
"""The schedulers that diffusers has not, and the modules that define them."""

FALLBACK = "dpmpp_2m"
"""The sampler in place of a model's own that cannot be used."""


def make_scheduler(
    name: str, config: Mapping[str, Any], *, karras: bool | None = None, churn: float = 0.0
) -> Any:
    """The diffusers scheduler with a short name, on the model's path.

    Args:
        name: a key of `SCHEDULERS`, or `OWN_SCHEDULER` for the class and all settings of the model's config.
        config: the model's `scheduler_config.json`: betas, prediction type, timestep spacing.
        karras: space the noise levels by Eq. 5 of Karras et al. 2022. None: as the config says for the model's own
            scheduler, and no for the others.
        churn: S_churn of Karras et al. 2022, the noise that EDM's sampler adds again.

    Raises:
        UserError: the name is unknown, a required package is not installed, or the scheduler does not support the
            model, `karras` or `churn`.

    Warns:
        LdmWarning: the model's own scheduler cannot be used, so it is `FALLBACK`.
    """
    if name == OWN_SCHEDULER:
        if own := _own_entry(config):
            return _make(name, own, {}, config, _own_spacing(own, config, karras) | _churn(own, churn))
        name = FALLBACK
    entry = _entry(name, config)
    spacing = _spacing(entry, karras=bool(karras))
    return _make(name, entry, entry.overrides, config, spacing | _churn(entry, churn))


def corrected_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's scheduler config with `CORRECTIONS` written out, for the stock pipelines that make none."""
    entry = _entry_of_class(config)
    known = _settings_of(scheduler_class(entry.class_name)) if entry else set()
    return {**config, **{key: value for key, value in CORRECTIONS.items() if key in known}}


def resolve_scheduler(name: str, config: Mapping[str, Any], karras: bool | None) -> tuple[str, bool]:
    """A sampler's name and whether it has Karras spacing, as they are recorded.

    For the model's own scheduler this is the sampler of the table that has the same settings, if there is one.

    Args:
        name: as of `make_scheduler`; errors and warnings as there.
        karras: None where it is left open.
    """
    if name != OWN_SCHEDULER:
        return name, bool(karras)
    own = _own_entry(config)
    if own is None:
        return FALLBACK, bool(karras)
    settings = _settings(own, {}, config, _own_spacing(own, config, karras))
    with_karras = bool(settings.get("use_karras_sigmas"))
    for known, entry in _along(config).items():
        if entry.class_name == own.class_name and entry.available:
            spacing = _spacing(entry, karras=with_karras)
            if _settings(entry, entry.overrides, config, spacing) == settings:
                return known, with_karras
    return name, with_karras


def _settings(
    entry: SchedulerEntry, overrides: Mapping[str, Any], config: Mapping[str, Any], spacing: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of all settings that a scheduler's class has."""
    defaults = _defaults_of(scheduler_class(entry.class_name))
    path = path_of_config(config)
    along = path.scheduler_settings(entry.class_name) if path else {}
    given = {**_path_of(config), **_said(config), **along, **CORRECTIONS, **spacing, **overrides}
    if entry.class_name != "DDPMScheduler" and given.get("variance_type") == LEARNED_VARIANCE:
        del given["variance_type"]  # others only drop the variance, and take the mean to have three channels
    return {key: given.get(key, default) for key, default in defaults.items() if key != "self"}


def replaced_settings(
    name: str, config: Mapping[str, Any], *, karras: bool = False, is_chosen: bool = False
) -> list[str]:
    """What a sampler chosen by name has otherwise than the model's scheduler config asks for, each as a short text.

    Only settings of the noise levels, and those that define the sampler where it is of the config's own class.

    Args:
        karras: whether it has Karras spacing.
        is_chosen: whether the user chose that, which needs no mention.
    """
    if name == OWN_SCHEDULER:
        return []
    entry, said = _entry(name, config), _said(config)
    used = {**entry.overrides, **_spacing(entry, karras=karras)}
    is_own = config.get("_class_name") == entry.class_name
    asked = [key for key in used if key in SPACINGS or (is_own and key != "algorithm_type")]
    return [
        f"{key} {_shown(said[key])} by {_shown(used[key])}"
        for key in asked
        if said.get(key) is not None
        and said[key] != used[key]
        and not (is_chosen and key == "use_karras_sigmas")
    ]


def adds_noise(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a sampler draws new noise at each step; arguments as of `make_scheduler`."""
    if name != OWN_SCHEDULER:
        return SCHEDULERS[name].stochastic
    own = _own_entry(config)
    return SCHEDULERS[FALLBACK].stochastic if own is None else own.stochastic


def can_run_own(config: Mapping[str, Any]) -> bool:
    """Whether the scheduler that a model's config names can be used with the model, and is installed."""
    return not _own_fault(config)


def _make(
    name: str,
    entry: SchedulerEntry,
    overrides: Mapping[str, Any],
    config: Mapping[str, Any],
    spacing: Mapping[str, Any],
) -> Any:
    _check_fit(name, entry, {**_path_of(config), **_said(config)})
    cls = scheduler_class(entry.class_name)
    try:
        return cls.from_config(_settings(entry, overrides, config, spacing))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise UserError(f"scheduler {name!r} cannot follow the model's scheduler config: {error}") from error


def _spacing(entry: SchedulerEntry, *, karras: bool) -> dict[str, Any]:
    """The spacing settings of a sampler that is chosen by name.

    Raises:
        UserError: it has no Karras spacing.
    """
    known = _settings_of(scheduler_class(entry.class_name))
    if karras and (entry.on_other_path or "use_karras_sigmas" not in known):
        if entry.on_other_path:
            raise UserError(f"{entry.title} has no Karras spacing on this model's path", "leave karras out")
        named = next((name for name, one in SCHEDULERS.items() if one is entry), entry.title)
        raise UserError(f"scheduler {named!r} has no Karras spacing", f"use {_names(karras=True)}")
    return {key: karras and key == "use_karras_sigmas" for key in SPACINGS if key in known}


def _churn(entry: SchedulerEntry, churn: float) -> dict[str, float]:
    """The setting of churn, where it is asked for.

    Raises:
        UserError: the sampler has none.
    """
    if churn and "s_churn" not in _settings_of(scheduler_class(entry.class_name)):
        raise UserError(
            f"churn is {churn:g}, and {entry.title} has none with this model",
            "use scheduler heun with a model of path edm, or leave churn out",
        )
    return {"s_churn": churn} if churn else {}


def _own_spacing(entry: SchedulerEntry, config: Mapping[str, Any], karras: bool | None) -> dict[str, Any]:
    """What `karras` changes in the spacing of a model's own scheduler."""
    asked = bool(_said(config).get("use_karras_sigmas"))
    if karras is None or karras == asked:
        return {}
    return _spacing(entry, karras=True) if karras else {"use_karras_sigmas": False}


def _own_entry(config: Mapping[str, Any]) -> SchedulerEntry | None:
    """The scheduler that a model's config names, as an entry without settings of its own; None if it cannot be used."""
    if fault := _own_fault(config):
        own = config.get("_class_name", "scheduler")
        warn(f"the model's own {own} {fault}, so {FALLBACK} is used: choose with --scheduler")
        return None
    return _entry_of_class(config)


def _own_fault(config: Mapping[str, Any]) -> str:
    entry = _entry_of_class(config)
    if entry is None:
        return "is not supported"
    if not entry.available:
        return f"needs {entry.requires}"
    return _misfit(entry, config)


def _entry_of_class(config: Mapping[str, Any]) -> SchedulerEntry | None:
    """The entry with the config's class, and with its algorithm where there are several."""
    class_name = config.get("_class_name", "DDIMScheduler")
    found = [entry for entry in _along(config).values() if entry.class_name == class_name]
    is_sde = str(config.get("algorithm_type", "")).startswith("sde-")
    same = [entry for entry in found if entry.stochastic == is_sde] if len(found) > 1 else found
    return same[0] if same else None


def _path_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model's path that its config leaves out, with the defaults of the config's own class."""
    entry = _entry_of_class(config)
    defaults = _defaults_of(scheduler_class(entry.class_name)) if entry else {}
    return {key: defaults[key] for key in PATH_KEYS if key in defaults}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def training_path(config: Mapping[str, Any], model: str, *, component: str = "scheduler") -> ScheduleSettings:
    """The training path defined by a model's scheduler config; missing values get diffusers' defaults.

    Args:
        model: the model's name, for error messages.
        component: that the config is of, for error messages.

    Raises:
        UserError: training does not support the path or the prediction type.
    """
    file = f"{model}: {component}/scheduler_config.json"
    if config.get("trained_betas") is not None:
        raise UserError(
            f"{file}: trained_betas is set",
            "choose a base without it, training only supports a beta_schedule",
        )
    said = {**_defaults_of(scheduler_class("DDIMScheduler")), **_path_of(config), **_said(config)}
    said["learn_variance"] = said.get("variance_type") == LEARNED_VARIANCE
    return validate(ScheduleSettings, {key: said[key] for key in ScheduleSettings.model_fields}, where=file)


def few_step_config(config: Mapping[str, Any], num_solver_steps: int) -> dict[str, Any]:
    """The scheduler config of a model that was distilled: diffusers' `LCMScheduler` on the same noise schedule.

    A flow model keeps its own: `StableDiffusionPipeline` cannot run diffusers' `FlowMatchLCMScheduler`.

    Args:
        config: of the model's teacher.
        num_solver_steps: of the distillation.
    """
    if path_name(config) != "ddpm":
        return dict(config)
    name = "LCMScheduler"
    kept = {**_path_of(config), **_said(config), **CORRECTIONS}
    known = _settings_of(scheduler_class(name))
    return {
        "_class_name": name,
        **{key: value for key, value in kept.items() if key in known},
        "original_inference_steps": num_solver_steps,
        "timestep_scaling": TIMESTEP_SCALING,
    }


def trained_path(config: Mapping[str, Any], model: str) -> ProbabilityPath:
    """The path that a model was trained on, by its scheduler config; arguments and errors as of `training_path`."""
    return path_of_config(config) or DDPMPath(training_path(config, model))


def schedulers_for(config: Mapping[str, Any]) -> list[str]:
    """The names of all samplers that support this scheduler config and whose required packages are installed."""
    return [name for name, entry in _along(config).items() if entry.available and not _misfit(entry, config)]


def _along(config: Mapping[str, Any]) -> dict[str, SchedulerEntry]:
    """The samplers that exist on a model's path, with their classes there."""
    path = DDPMPath.name if uses_table(config) else path_name(config)
    found = {name: entry.along(path) for name, entry in SCHEDULERS.items()}
    return {name: entry for name, entry in found.items() if entry is not None}


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values explicitly set in a config; a scheduler instance's config also holds its class's defaults."""
    unsaid = {"_use_default_values", *config.get("_use_default_values", ())}
    return {key: value for key, value in config.items() if key not in unsaid}


def _entry(name: str, config: Mapping[str, Any]) -> SchedulerEntry:
    """The sampler with a short name, on a model's path."""
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, [OWN_SCHEDULER, *SCHEDULERS])
    entry = _along(config).get(name)
    if entry is None:
        raise UserError(
            f"scheduler {name!r} does not support {path_name(config)} models",
            f"use {', '.join(schedulers_for(config))}",
        )
    if not entry.available:
        raise UserError(f"scheduler {name!r} needs {entry.requires}", f"pip install {entry.requires}")
    return entry


def scheduler_class(class_name: str) -> Any:
    """A scheduler of diffusers, or ours of that name."""
    import diffusers

    if class_name in OWN_CLASSES:
        return getattr(import_module(OWN_CLASSES[class_name]), class_name)
    return getattr(diffusers, class_name)


def _settings_of(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


def _defaults_of(cls: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(cls.__init__).parameters.items()}


def _check_fit(name: str, entry: SchedulerEntry, config: Mapping[str, Any]) -> None:
    prediction_type = config.get("prediction_type", "epsilon")
    if path_name(config) == "ddpm" and prediction_type not in ("epsilon", "v_prediction", "sample"):
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
    if entry.on_other_path and config.get("prediction_type") == "sample":
        reads = "prediction_type" in _settings_of(scheduler_class(entry.class_name))
        return "" if reads else "does not support models with prediction type sample"
    if config.get("prediction_type") == "sample" and not entry.reads_sample:
        return "does not support models with prediction type sample"
    if _zero_snr(config) and "rescale_betas_zero_snr" not in _settings_of(scheduler_class(entry.class_name)):
        return "would ignore the model's zero terminal SNR"
    return ""


def _zero_snr(config: Mapping[str, Any]) -> bool:
    return bool(config.get("rescale_betas_zero_snr"))


def _names(*, karras: bool) -> str:
    usable = [(name, entry) for name, entry in SCHEDULERS.items() if entry.available]
    return ", ".join(
        n for n, e in usable if ("use_karras_sigmas" in _settings_of(scheduler_class(e.class_name))) is karras
    )
