"""The facts of a model card, without any wording: the model, its hashes, and the software that exported it."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path

from torch import nn

from ldm.diffusion.interval import EVERYWHERE
from ldm.diffusion.path import LEARNED_VARIANCE
from ldm.diffusion.paths import prediction_type_of, uses_table
from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.diffusion.schedulers import OWN_CLASSES, scheduler_class
from ldm.export.card.run_record import RunRecord
from ldm.export.export_source import ExportSource
from ldm.export.formats.exporter import BaseModel, ExportedModel
from ldm.export.formats.formats import FORMATS
from ldm.io.redaction import redacted
from ldm.models.loading.folder import ADAPTER
from ldm.models.loading.source import EMBEDDED, HUB_ID
from ldm.models.parts import ModelParts
from ldm.version import __version__


@dataclass(frozen=True)
class ModelFacts:
    """The networks, and the settings they are best sampled with.

    Attributes:
        denoiser, autoencoder, text_encoder: numbers of weights.
        lora: the number of weights of an export that is a LoRA alone.
        text_width: features of each token.
        guidance_interval: None if all steps are guided; a rising pair is fractions of the steps, a falling one noise
            levels.
    """

    prediction_type: str
    has_zero_terminal_snr: bool
    denoiser: int
    autoencoder: int
    text_encoder: int
    lora: int | None
    latent_channels: int
    text_width: int
    height: int
    width: int
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] | None


def model_facts(exported: ExportedModel) -> ModelFacts:
    """What the model itself tells."""
    parts, lora = exported.source.parts, exported.source.lora
    defaults, config = parts.defaults, parts.scheduler_config
    interval = (float(defaults.guidance_interval[0]), float(defaults.guidance_interval[1]))
    return ModelFacts(
        prediction_type=prediction_type_of(config),
        has_zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")),
        denoiser=_num_weights(parts.denoiser),
        autoencoder=_num_weights(parts.autoencoder),
        text_encoder=_num_weights(parts.text_encoder),
        lora=sum(t.numel() for t in lora.tensors.values()) if lora and exported.is_lora else None,
        latent_channels=parts.autoencoder.num_channels,
        text_width=parts.text_encoder.text_width,
        height=defaults.height,
        width=defaults.width,
        scheduler=_sampler(parts),
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        guidance_interval=None if interval == EVERYWHERE else interval,
    )


def _sampler(parts: ModelParts) -> str:
    """The name of the sampler that the model is best sampled with; of its own scheduler, the class."""
    name = parts.defaults.scheduler
    return str(parts.scheduler_config.get("_class_name", name)) if name == OWN_SCHEDULER else name


def _num_weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class SchedulerChange:
    """A scheduler that a stock pipeline has to be given, and settings that differ from the exported ones."""

    class_name: str
    changes: dict[str, object]


def scheduler_change(parts: ModelParts, *, is_lora: bool = False) -> SchedulerChange | None:
    """The scheduler of the model's defaults; None if a stock pipeline takes it anyway, or diffusers lacks it.

    Args:
        is_lora: whether only a LoRA is exported, so that the pipeline has the base's scheduler. That is good enough,
            unless the LoRA distils the base.
    """
    entry = SCHEDULERS.get(parts.defaults.scheduler)  # None for the model's own
    if entry is None or not entry.available or entry.class_name in OWN_CLASSES:
        return None
    learned = parts.scheduler_config.get("variance_type") == LEARNED_VARIANCE
    if is_lora and not entry.for_few_steps:
        return None
    if learned or not uses_table(parts.scheduler_config):
        return None  # the saved scheduler is the one that a stock pipeline can run
    parameters = signature(scheduler_class(entry.class_name)).parameters
    config = {name: parameter.default for name, parameter in parameters.items()} | parts.scheduler_config
    changes = {key: value for key, value in entry.overrides.items() if config.get(key) != value}
    if config.get("_class_name") == entry.class_name and not changes and not is_lora:
        return None
    return SchedulerChange(entry.class_name, changes)


def find_base(source: ExportSource, run: RunRecord | None) -> BaseModel | None:
    """The model that training started from, if any."""
    given = source.adapter.base if source.adapter else run.setting("base") if run else None
    if not isinstance(given, str):
        return None
    if hub_id := hub_id_of(given):
        return BaseModel(hub_id, hub_id)
    return BaseModel(given if given in EMBEDDED else public_name(given))


def hub_id_of(model: str) -> str | None:
    """A model's Hub id, if it certainly is one: there is no such folder, and it is in this machine's Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    if not HUB_ID.fullmatch(model) or Path(model).exists():
        return None
    repo_id, _, revision = model.partition("@")
    cached = (
        try_to_load_from_cache(repo_id, file, revision=revision or None)
        for file in ("model_index.json", ADAPTER)
    )
    return repo_id if any(isinstance(path, str) for path in cached) else None


def public_name(path: str) -> str:
    """The last part of a path, without private names."""
    return str(redacted(path, "path", name_paths=True))


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of the weights of the exported model and of its base, and of the training data."""

    model: str
    base: str | None
    data: str | None


def hashes_of(source: ExportSource, run: RunRecord | None) -> Hashes:
    """The hashes that are known."""
    report = (run.data_report if run else None) or {}
    base = source.adapter.base_weights_hash if source.adapter else None
    return Hashes(
        source.weights_hash, base, str(report["fingerprint"]) if report.get("fingerprint") else None
    )


def software_of(exported: ExportedModel) -> dict[str, str]:
    """The versions of the programs that made the export, by name."""
    packages = ["torch", "diffusers", "transformers", "safetensors"]
    packages += ["peft"] if exported.source.adapter is not None else []
    packages += FORMATS[exported.format].packages
    found = {name: _version(name) for name in packages}
    own = {"Python": platform.python_version(), "open-ldm": __version__}
    return own | {name: number for name, number in found.items() if number is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
