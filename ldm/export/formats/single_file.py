"""A model as one safetensors file in the layout of the original programs, which most programs for pictures read.

Such a file has no configuration: its readers take the structure of Stable Diffusion 1 or 2 for granted, at any width.
A model of another structure is refused by what differs, for nobody would read it as it is meant.
"""

import hashlib
import inspect
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.export.formats.modelspec import ORIGINAL_LAYOUT, modelspec_fields
from ldm.io.files import disk_errors, write_tensors
from ldm.models.clip_tokenizer import clip_vocabulary
from ldm.models.families.original_names import NUM_LEVELS, to_original
from ldm.models.families.original_shapes import (
    CLASSES,
    CONTEXT_LENGTH,
    text_settings,
    unet_settings,
    vae_settings,
)
from ldm.models.loading.original_file import LAYERS_OF_VIT_H
from ldm.models.parts import ModelParts, default_size

NO_PART_OF_THE_STRUCTURE = {
    "sample_size", "upcast_attention", "force_upcast", "dropout", "projection_dim",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Settings of the networks that readers need not know to get the same picture."""

SCHEDULE = {
    "beta_schedule": ("linear", "scaled_linear"),
    "beta_start": (0.0001, 0.00085),
    "beta_end": (0.02, 0.012),
    "num_train_timesteps": (1000, 1000),
    "trained_betas": (None, None),
}
"""The noise schedule: what diffusers has where a model is silent, and what readers of a single file have."""

HASH = "modelspec.hash_sha256"
HINT = "export it in the diffusers layout instead"


def write_single_file(
    parts: ModelParts, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write a model as one file, whole or not at all.

    Args:
        dtype: that the weights are stored in.
        metadata: of the header, such as `modelspec_metadata` gives; the hash of the weights is added.

    Raises:
        UserError: the model has another structure than readers of such files assume; or the disk is full.
    """
    check_structure(parts)
    tensors = _tensors(parts, dtype)
    temporary = path.parent / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
    with disk_errors(path):
        try:
            write_tensors(temporary, tensors, {"format": "pt", **metadata, HASH: _hash_text("0" * 64)})
            _write_hash(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def modelspec_metadata(
    parts: ModelParts, *, title: str, licence: str | None = None, **fields: Any
) -> dict[str, str]:
    """The header of a single file: ModelSpec's fields, of which `fields` are as `modelspec_fields` has them.

    Args:
        title: the model's name.
        licence: of the weights, an SPDX name such as "mit".
    """
    height, width = default_size(parts.denoiser, parts.autoencoder)
    predicts = str(parts.scheduler_config.get("prediction_type", "epsilon"))
    return modelspec_fields(
        architecture=_architecture(parts, predicts, height),
        implementation=ORIGINAL_LAYOUT,
        title=title,
        resolution=(width, height),
        prediction_type=predicts,
        licence=licence,
        **fields,
    )


def _architecture(parts: ModelParts, prediction_type: str, height: int) -> str:
    """ModelSpec's name of it; Stable Diffusion 2 comes as 512 pixels, and as 768 predicting v."""
    if not _is_open_clip(parts):
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-768-v" if prediction_type == "v_prediction" else "stable-diffusion-v2-512"


def has_known_unet(parts: ModelParts) -> bool:
    """Whether the denoiser is built as that of Stable Diffusion 1 or 2, as other programs assume of a LoRA's model."""
    try:
        _check_unet(parts)
    except UserError:
        return False
    return True


def check_structure(parts: ModelParts) -> None:
    """Refuse a model that readers of a single file would take for another one.

    Raises:
        UserError: naming the first setting that differs, and what readers assume.
    """
    vae, open_clip = parts.autoencoder.vae, _is_open_clip(parts)
    _check_unet(parts)
    _check_levels("autoencoder", vae)
    _check_settings("vae", vae, vae_settings(vae.config.block_out_channels))
    _check_text(parts, parts.text_encoder.model, open_clip)
    _check_tokenizer(parts, open_clip)
    _check_schedule(parts.scheduler_config)


def _check_unet(parts: ModelParts) -> None:
    unet, text_width = parts.denoiser.unet, parts.text_encoder.text_width
    _check_levels("unet", unet)
    widths, linear = unet.config.block_out_channels, _is_open_clip(parts)
    _check_settings("unet", unet, unet_settings(widths, text_width=text_width, linear=linear))


def _check_levels(part: str, network: Any) -> None:
    levels = len(network.config.block_out_channels)
    if levels != NUM_LEVELS:
        raise UserError(f"the {part} has {levels} levels, and a single file has {NUM_LEVELS}", HINT)


def _is_open_clip(parts: ModelParts) -> bool:
    """Stable Diffusion 2's text encoder is told from 1's by its activation alone."""
    return str(parts.text_encoder.model.config.hidden_act) == "gelu"


def _check_text(parts: ModelParts, text: Any, open_clip: bool) -> None:
    layers = text.config.num_hidden_layers
    if open_clip and layers >= LAYERS_OF_VIT_H:
        raise UserError(f"the text encoder has {layers} layers, of which readers leave the last out", HINT)
    settings = text_settings(
        parts.text_encoder.text_width,
        inner_width=text.config.intermediate_size,
        num_layers=layers,
        open_clip=open_clip,
    )
    _check_settings("text_encoder", text, settings)


def _check_settings(part: str, network: Any, assumed: Mapping[str, Any]) -> None:
    """Hold a network's settings against those of a reader: the assumed ones, and the class's own for the rest."""
    parameters = inspect.signature(CLASSES[part].__init__).parameters.values()
    silent = {p.name: p.default for p in parameters if p.default is not p.empty}
    given = dict(network.config.to_dict() if part == "text_encoder" else network.config)
    for key, value in {**silent, **assumed}.items():
        if key not in NO_PART_OF_THE_STRUCTURE and _plain(given.get(key, value)) != _plain(value):
            raise UserError(
                f"the {part}'s {key} is {_plain(given[key])!r}, and readers of a single file assume {_plain(value)!r}",
                HINT,
            )


def _plain(value: Any) -> Any:
    """A setting whichever way it is written: a value for every level, or once for all."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _check_tokenizer(parts: ModelParts, open_clip: bool) -> None:
    tokenizer = parts.text_encoder.tokenizer
    if tokenizer.get_vocab() != clip_vocabulary():
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens of its own, and readers of a single file have CLIP's",
            HINT,
        )
    if parts.text_encoder.context_length != CONTEXT_LENGTH:
        raise UserError(
            f"a prompt has {parts.text_encoder.context_length} tokens, and readers assume {CONTEXT_LENGTH}",
            HINT,
        )
    padding = 0 if open_clip else tokenizer.eos_token_id
    if tokenizer.pad_token_id != padding:
        raise UserError(
            f"prompts are padded with token {tokenizer.pad_token_id}, and readers assume {padding}", HINT
        )


def _check_schedule(config: Mapping[str, Any]) -> None:
    for key, (silent, assumed) in SCHEDULE.items():
        if config.get(key, silent) != assumed:
            raise UserError(
                f"the noise schedule's {key} is {config.get(key, silent)!r}, and readers assume {assumed!r}",
                HINT,
            )
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise UserError(f"the model predicts {config['prediction_type']!r}, which no reader knows", HINT)


def _tensors(parts: ModelParts, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything by its original name; empty tensors mark what the model predicts, and on which schedule."""
    networks = (parts.denoiser.unet, parts.autoencoder.vae, parts.text_encoder.model)
    try:
        named = to_original(*(network.state_dict() for network in networks), open_clip=_is_open_clip(parts))
    except KeyError as error:
        raise UserError(f"the weight {error.args[0]} has no place in a single file", HINT) from None
    tensors = {name: tensor.to(dtype) for name, tensor in named.items()}
    if parts.scheduler_config.get("prediction_type") == "v_prediction":
        tensors["v_pred"] = torch.empty(0, dtype=dtype)
    if parts.scheduler_config.get("rescale_betas_zero_snr"):
        tensors["ztsnr"] = torch.empty(0, dtype=dtype)
    return tensors


def _hash_text(digest: str) -> str:
    return f"0x{digest}"


def _write_hash(path: Path) -> None:
    """Put the SHA-256 of the tensors' bytes, all that follows the header, in the place kept for it."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        before, after = (f'"{HASH}":"{_hash_text(text)}"'.encode() for text in ("0" * 64, digest))
        assert header.count(before) == 1
        file.seek(8)
        file.write(header.replace(before, after))
