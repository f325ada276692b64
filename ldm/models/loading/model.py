"""A model in its parts: loaded from a folder or one file, saved to a folder."""

import json
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.io.collector import collector_paused
from ldm.io.files import new_folder, write_bytes, write_json
from ldm.models.adapters.embedding import TokenEmbedding, expanded_tokens
from ldm.models.adapters.folder import adapter_chain, apply_adapter
from ldm.models.adapters.lora import lora_parameters
from ldm.models.clip import ClipTextEncoder
from ldm.models.loading.components import load_text_model, load_tokenizer, load_unet, load_vae, save_network
from ldm.models.loading.folder import check_folder, is_adapter, read_defaults, read_object, weights_variant
from ldm.models.parts import ModelParts, default_size
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder

__all__ = ["ModelParts", "default_size", "load_parts", "save_parts", "save_small_files"]


@collector_paused()
def load_parts(folder: Path, *, dtype: torch.dtype = torch.float32) -> ModelParts:
    """Load a model from its folder or single file, on the CPU, in evaluation mode, without gradients.

    An adapter's folder gives its base with the adapter added in, in float32 and then cast.

    Args:
        dtype: of the denoiser and the text encoder; the autoencoder stays in float32, as it may overflow.

    Raises:
        UserError: the folder is no model, is incomplete or damaged, or asks for what is not allowed.
    """
    if folder.is_file():
        from ldm.models.loading.original_file import (
            load_single_file,  # what only such a file needs is slow to import
        )

        return load_single_file(folder, dtype)
    if is_adapter(folder):
        return _load_adapted(folder, dtype)
    check_folder(folder)
    denoiser = UNetDenoiser(load_unet(folder / "unet", dtype, weights_variant(folder, "unet")))
    autoencoder = KLAutoencoder(load_vae(folder / "vae", torch.float32, weights_variant(folder, "vae")))
    text_model = load_text_model(folder / "text_encoder", dtype, weights_variant(folder, "text_encoder"))
    text_encoder = ClipTextEncoder(load_tokenizer(folder / "tokenizer"), text_model)
    _check_widths(folder, denoiser, autoencoder, text_encoder)
    scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
    defaults = read_defaults(folder, *default_size(denoiser, autoencoder))
    parts = ModelParts(denoiser, autoencoder, text_encoder, scheduler_config, defaults)
    for module in parts.modules():
        module.eval().requires_grad_(False)
    return parts


def _load_adapted(folder: Path, dtype: torch.dtype) -> ModelParts:
    base, chain = adapter_chain(folder)
    parts = load_parts(base)
    for inner, adapter in chain:
        apply_adapter(inner, adapter, parts.denoiser, parts.text_encoder)
        parts.scheduler_config = adapter.scheduler_config
    parts.defaults = read_defaults(folder, *default_size(parts.denoiser, parts.autoencoder))
    for module in (parts.denoiser, parts.text_encoder):
        module.to(dtype).eval().requires_grad_(False)
    return parts


def _check_widths(
    folder: Path, denoiser: UNetDenoiser, autoencoder: KLAutoencoder, text_encoder: ClipTextEncoder
) -> None:
    """Parts that do not fit each other, found now and not in the middle of the first picture."""
    pairs = {
        "latent channels": (denoiser.latent_channels, autoencoder.num_channels, "vae"),
        "text width": (denoiser.text_width, text_encoder.text_width, "text_encoder"),
    }
    for what, (wanted, given, part) in pairs.items():
        if wanted != given:
            raise UserError(
                f"{folder}: the unet has {what} {wanted}, the {part} {given}",
                "these parts are not of one text-to-image model",
            )


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
    """Write a stock diffusers folder, which `StableDiffusionPipeline` loads; whole or not at all.

    Args:
        dtype: that the weights are stored in.
        variant: goes into the names of the weights' files, such as "fp16".
        max_shard_size: larger safetensors are split, such as "14MB".
        provenance: written into `ldm.json` beside the defaults: where the model comes from.
        replace: take the place of a folder that exists.

    Raises:
        UserError: the folder exists, the disk is full or not writable, or the layout cannot hold the model.
    """
    _check_plain(parts)
    with new_folder(folder, replace=replace) as temporary:
        save_network(parts.denoiser.unet, temporary / "unet", dtype, max_shard_size, variant)
        save_network(parts.autoencoder.vae, temporary / "vae", dtype, max_shard_size, variant)
        save_network(parts.text_encoder.model, temporary / "text_encoder", dtype, max_shard_size, variant)
        save_small_files(parts, temporary)
        write_json(
            temporary / "ldm.json",
            {"defaults": parts.defaults.model_defaults(), "provenance": provenance or {}},
        )


def save_small_files(parts: ModelParts, folder: Path) -> None:
    """Write what a stock folder has beside its networks: tokenizer, scheduler, and the list of the parts.

    Raises:
        UserError: a folder cannot hold the model.
    """
    _check_plain(parts)
    _save_tokenizer(parts.text_encoder.tokenizer, folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", parts.scheduler_config)
    write_json(folder / "model_index.json", _model_index(parts))


def _check_plain(parts: ModelParts) -> None:
    """Refuse what a reader of the folder would not find in it: layers of an adapter, tokens of several vectors."""
    networks = (parts.denoiser.unet, parts.text_encoder.model)
    if any(lora_parameters(network) for network in networks) or any(
        isinstance(module, TokenEmbedding) for module in parts.text_encoder.modules()
    ):
        raise UserError(
            "an adapter is being trained in this model", "save the adapter in a folder of its own"
        )
    if tokens := expanded_tokens(parts.text_encoder.tokenizer):
        raise UserError(
            f"{tokens[0]} has several vectors, which no tokenizer's files can hold",
            "keep the adapter in a folder of its own",
        )


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json for readers of today, vocab.json and merges.txt for older ones."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_json(folder / "vocab.json", model["vocab"])
    write_bytes(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())


def _model_index(parts: ModelParts) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", parts.scheduler_config.get("_class_name", "DDIMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
