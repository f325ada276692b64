"""Load a model from a folder, a file or the Hub, and save it as a folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.diffusion.schedulers import corrected_config
from ldm.errors import UserError, unknown_name, warn
from ldm.io.collector import collector_paused
from ldm.io.files import sha256_file, write_bytes, write_json
from ldm.io.folders import new_folder
from ldm.io.json_files import read_object
from ldm.models.adapters.embedding import TokenEmbedding, expanded_tokens
from ldm.models.adapters.folder import adapter_chain, apply_adapters
from ldm.models.adapters.fuse import UsedLora, apply_loras
from ldm.models.adapters.lora import lora_parameters
from ldm.models.families.family import Family
from ldm.models.families.registry import family_of_folder
from ldm.models.generation_settings import TEXT_TO_IMAGE
from ldm.models.latent_scale import with_scaling_factor
from ldm.models.loading.components import load_network, load_tokenizer, save_network
from ldm.models.loading.folder import check_folder, read_defaults, weights_hash, weights_variant
from ldm.models.loading.original_file import PREDICTION_TYPES, load_single_file
from ldm.models.loading.source import find_model
from ldm.models.loading.trained_task import read_task
from ldm.models.loading.vae_file import autoencoder_files, load_autoencoder
from ldm.models.low_resolution import COMPONENT, LowResolutionNoise, low_resolution_of
from ldm.models.parts import ModelParts, assemble, check_widths, default_size
from ldm.models.vae import KLAutoencoder

__all__ = [
    "LoadedModel",
    "ModelParts",
    "Substitutes",
    "default_size",
    "load_model",
    "load_parts",
    "save_parts",
    "save_small_files",
]


@dataclass(frozen=True)
class Substitutes:
    """What is used in place of a model's own; None is the model's.

    Attributes:
        vae: an autoencoder, see `ldm.models.loading.vae_file.load_autoencoder`.
        base: a model that has what a single file lacks.
        prediction_type: "epsilon" or "v_prediction".
    """

    vae: str | Path | None = None
    base: str | Path | None = None
    prediction_type: str | None = None

    def hash(self, model: str) -> str:
        """The hash of a model, given alone, together with these; the same one if there are none."""
        lines = [f"{model}  model\n"]
        if self.vae:
            files = autoencoder_files(Path(self.vae).expanduser())
            lines += [f"{sha256_file(path)}  vae {path.suffix}\n" for path in files]
        if self.base:
            lines.append(f"{weights_hash(find_model(self.base)[0])}  base\n")
        if self.prediction_type:
            lines.append(f"{PREDICTION_TYPES[self.prediction_type]}  prediction_type\n")
        return model if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()


NONE = Substitutes()


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it comes from.

    Attributes:
        place: the folder or the single file that it was loaded from.
        model_id: a name without a path.
        loras: what was added to the weights in `place`.
    """

    parts: ModelParts
    place: Path
    model_id: str
    loras: tuple[UsedLora, ...] = ()


@collector_paused()
def load_model(
    model: str | Path,
    *,
    loras: Sequence[tuple[str | Path, float]] = (),
    dtype: torch.dtype = torch.float32,
    substitutes: Substitutes = NONE,
) -> LoadedModel:
    """Load a model, on the CPU, in evaluation mode, without gradients.

    Adapters and LoRAs are added in float32; the sum is rounded to `dtype` once.

    Args:
        model: as of `ldm.models.loading.source.find_model`.
        loras: files or folders as of `ldm.models.adapters.lora_files.read_lora_file`, each with its weight.
        dtype: of the networks; the autoencoder stays in float32, as it may overflow.
        substitutes: what is used in place of the model's own.

    Raises:
        UserError: there is no such model or LoRA, or it is incomplete, damaged or not allowed.
    """
    place, model_id = find_model(model)
    base, adapters = adapter_chain(place)
    is_changed = bool(adapters or loras)
    parts = _load_complete(base, torch.float32 if is_changed else dtype, substitutes)
    apply_adapters(parts, base, adapters, substituted=("vae",) if substitutes.vae else ())
    used = apply_loras(parts, loras)
    if is_changed:
        _round(parts, dtype)
    if adapters:
        size = default_size(parts.denoiser, parts.autoencoder)
        parts.defaults = read_defaults(place, *size, usual=parts.family.defaults)
    if substitutes.prediction_type:  # after an adapter, which has a schedule of its own
        predicts = PREDICTION_TYPES[substitutes.prediction_type]
        parts.scheduler_config = {**parts.scheduler_config, "prediction_type": predicts}
    return LoadedModel(parts, place, model_id, used)


def _load_complete(place: Path, dtype: torch.dtype, substitutes: Substitutes) -> ModelParts:
    """A model from a file or a folder."""
    predicts = substitutes.prediction_type
    if predicts is not None and predicts not in PREDICTION_TYPES:
        raise unknown_name("prediction type", predicts, PREDICTION_TYPES)
    vae = load_autoencoder(Path(substitutes.vae).expanduser()) if substitutes.vae else None
    if place.is_file():
        base = load_parts(substitutes.base, dtype=dtype) if substitutes.base else None
        return load_single_file(place, dtype, prediction_type=predicts, vae=vae, base=base)
    if substitutes.base:
        raise UserError(f"{place} is a complete model", "leave --base out: it is for files that lack a part")
    parts = _load_folder(place, dtype)
    if vae is not None:
        check_widths(place, parts.family.widths(parts.configs() | {"vae": dict(vae.config)}))
        parts.autoencoder = KLAutoencoder(vae).eval().requires_grad_(False)
    return parts


def load_parts(model: str | Path, *, dtype: torch.dtype = torch.float32) -> ModelParts:
    """The parts alone of `load_model`; arguments and errors as there."""
    return load_model(model, dtype=dtype).parts


def _load_folder(folder: Path, dtype: torch.dtype) -> ModelParts:
    """A folder in the diffusers layout: recognise the family, check, load each component, read the defaults."""
    family = family_of_folder(folder)
    check_folder(folder)
    components: dict[str, Any] = {}
    for name, component in family.networks.items():
        own_dtype = torch.float32 if component.keep_float32 else dtype
        components[name] = load_network(component, folder / name, own_dtype, weights_variant(folder, name))
    for name, component in family.tokenizers.items():
        components[name] = load_tokenizer(folder / name, component)
    scheduler_config = _scheduler_config(folder)
    index = read_object(folder / "model_index.json")
    parts = assemble(folder, family, components, scheduler_config, index)
    size = parts.defaults.height, parts.defaults.width
    parts.defaults = read_defaults(folder, *size, usual=family.defaults)
    parts.task = read_task(folder, family, parts.denoiser)
    if COMPONENT in family.components:
        parts.low_resolution = _low_resolution(folder)
    _use_scaling_factor(folder, family, parts.autoencoder)
    return parts


def _low_resolution(folder: Path) -> LowResolutionNoise:
    config = read_object(folder / COMPONENT / "scheduler_config.json")
    usual = LowResolutionNoise().max_noise_level
    level = read_object(folder / "model_index.json").get("max_noise_level", usual)
    return low_resolution_of(config, level, folder=folder)


def _use_scaling_factor(folder: Path, family: Family, autoencoder: KLAutoencoder) -> None:
    """Take the latents' scale for what the family's stock pipeline takes it for."""
    wanted, given = family.scaling_factor, autoencoder.scaling_factor
    if wanted is None or given == wanted:
        return
    warn(
        f"{folder}: scaling_factor {given:g} of the vae is taken for {wanted:g}, as {family.pipeline_class} does"
    )
    autoencoder.vae.register_to_config(scaling_factor=wanted)


def _scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration. As in diffusers, `model_index.json` decides of which class it is."""
    config = read_object(folder / "scheduler" / "scheduler_config.json")
    _, class_name = read_object(folder / "model_index.json")["scheduler"]
    return {**config, "_class_name": class_name}


def _round(parts: ModelParts, dtype: torch.dtype) -> None:
    """Give the networks their number format, after everything has been added to them."""
    components = parts.family.components
    for name, network in parts.networks().items():
        if not components[name].keep_float32:
            nn.Module.to(network, dtype)
        network.eval().requires_grad_(False)
    for control in parts.controls.values():
        nn.Module.to(control.network, dtype)


def save_parts(
    parts: ModelParts,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    provenance: dict[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write a stock diffusers folder, which the family's pipeline class loads; complete or not at all.

    Args:
        dtype: that the weights are stored in.
        variant: goes into the names of the weights' files, such as "fp16".
        max_shard_size: larger safetensors are split, such as "14MB".
        provenance: written into `ldm.json` beside the defaults: where the model comes from.
        replace: overwrite an existing folder.

    Raises:
        UserError: the folder exists, the disk is full or not writable, or the layout cannot hold the model.
    """
    _check_plain(parts)
    with new_folder(folder, replace=replace) as temporary:
        for name, network in _stored_networks(parts).items():
            save_network(network, temporary / name, dtype, max_shard_size, variant)
        save_small_files(parts, temporary)
        write_json(
            temporary / "ldm.json",
            {"defaults": parts.defaults.model_defaults(), "provenance": provenance or {}, **_task(parts)},
        )


def _stored_networks(parts: ModelParts) -> dict[str, Any]:
    """The networks as the family's stock pipeline gives the same images with them."""
    networks, factor = parts.networks(), parts.family.scaling_factor
    if factor is None or parts.autoencoder.scaling_factor == factor:
        return networks
    return networks | {"vae": with_scaling_factor(parts.autoencoder, factor).vae}


def save_small_files(parts: ModelParts, folder: Path) -> None:
    """Write what a stock folder has besides its networks: tokenizers, scheduler and the list of components.

    Raises:
        UserError: a folder cannot hold the model.
    """
    _check_plain(parts)
    components = parts.components()
    for name in parts.family.tokenizers:
        _save_tokenizer(components[name], folder / name)
    config = parts.scheduler_config
    if parts.family.pipeline_for(parts.task) != parts.family.pipeline_class:
        config = corrected_config(config)
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    if parts.low_resolution is not None:
        write_json(folder / COMPONENT / "scheduler_config.json", parts.low_resolution.scheduler_config())
    write_json(folder / "model_index.json", _model_index(parts))


def _check_plain(parts: ModelParts) -> None:
    """Refuse what a reader of the folder would not find in it: layers of an adapter, tokens of several vectors."""
    for network in parts.networks().values():
        if lora_parameters(network) or any(
            isinstance(module, TokenEmbedding) for module in network.modules()
        ):
            raise UserError(
                "an adapter is being trained in this model", "save the adapter in a folder of its own"
            )
    components = parts.components()
    for name in parts.family.tokenizers:
        if tokens := expanded_tokens(components[name]):
            raise UserError(
                f"{tokens[0]} has several vectors, which a tokenizer's files cannot hold",
                "keep the adapter in a folder of its own",
            )


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json for current readers, vocab.json and merges.txt for older ones."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_json(folder / "vocab.json", model["vocab"])
    write_bytes(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())


def _task(parts: ModelParts) -> dict[str, str]:
    """The task in `ldm.json`; a folder without it is for text-to-image."""
    return {} if parts.task == TEXT_TO_IMAGE else {"task": parts.task}


def _model_index(parts: ModelParts) -> dict[str, Any]:
    import diffusers

    family = parts.family
    listed: dict[str, list[str | None]] = {name: [None, None] for name in family.optional}
    listed |= {name: [one.library, one.classes[0]] for name, one in family.components.items()}
    listed["scheduler"] = ["diffusers", parts.scheduler_config.get("_class_name", "DDIMScheduler")]
    head = {"_class_name": family.pipeline_for(parts.task), "_diffusers_version": diffusers.__version__}
    settings = {**family.pipeline_settings, **parts.settings}
    if parts.low_resolution is not None:
        settings["max_noise_level"] = parts.low_resolution.max_noise_level
    return head | dict(sorted({**listed, **settings}.items()))
