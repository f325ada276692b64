"""IP-Adapters from files, checked against the model and the image encoder that they are for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import read_tensors, remembered_sha256
from ldm.io.json_files import shortened
from ldm.models.control.ip_adapter import ATTENTION, PROJECTION, ImagePrompts, IPAdapter, image_prompts_in
from ldm.models.families.family import Component
from ldm.models.loading.components import LIBRARY_ERRORS, load_network
from ldm.models.loading.folder import PICKLES
from ldm.models.parts import ModelParts

ENCODER_FOLDER = "image_encoder"
ENCODER = Component(
    "transformers", ("CLIPVisionModelWithProjection",), "transformers.models.clip.modeling_clip", stem="model"
)


def load_image_prompts(
    places: Sequence[str | Path],
    encoder: str | Path | None,
    parts: ModelParts,
    dtype: torch.dtype = torch.float32,
) -> ImagePrompts:
    """IP-Adapters from files or folders, and their image encoder.

    Args:
        encoder: the folder of the image encoder; None: `image_encoder` beside the first file or in its folder.

    Raises:
        UserError: a file is missing, damaged, or for another base model or encoder.
    """
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    files = [adapter_file(Path(place).expanduser()) for place in places]
    folder = Path(encoder).expanduser() if encoder is not None else _encoder_beside(files[0])
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json", "name the folder of a CLIP image encoder")
    network = load_network(ENCODER, folder, dtype).eval().requires_grad_(False)
    side = int(network.config.image_size)
    adapters = tuple(_read(file, parts, network) for file in files)
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    prompts = ImagePrompts(adapters, network, processor)
    for file, adapter in zip(files, adapters, strict=True):
        _check_loads(file, prompts, adapter, parts)
    return prompts


def _check_loads(file: Path, prompts: ImagePrompts, adapter: IPAdapter, parts: ModelParts) -> None:
    """Load an adapter once, so that a file that diffusers cannot read is refused before the first image."""
    try:
        with image_prompts_in(parts.denoiser.unet, prompts, [adapter], [1.0]):
            pass
    except LIBRARY_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} cannot be loaded ({reason})", "use an IP-Adapter as published") from error


def adapter_file(place: Path) -> Path:
    """The safetensors of an IP-Adapter: the file given, or the only one in a folder.

    Raises:
        UserError: there is none, or more than one.
    """
    if place.suffix in PICKLES:
        raise UserError(f"{place} is a pickle", "only safetensors are read: most IP-Adapters come in both")
    if place.is_file():
        return place
    found = sorted(place.glob("*.safetensors")) if place.is_dir() else []
    if len(found) != 1:
        what = f"{place} has {len(found)} safetensors" if place.is_dir() else f"{place} does not exist"
        raise UserError(what, "name the file of the IP-Adapter")
    return found[0]


def _encoder_beside(file: Path) -> Path:
    beside = file.parent / ENCODER_FOLDER
    if not beside.is_dir():
        raise UserError(
            f"{file.parent} has no folder {ENCODER_FOLDER}", "name the image encoder: --image-encoder FOLDER"
        )
    return beside


def _read(file: Path, parts: ModelParts, encoder: Any) -> IPAdapter:
    tensors = read_tensors(file)
    weights: dict[str, dict[str, Tensor]] = {PROJECTION: {}, ATTENTION: {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in weights:
            raise UserError(
                f"{file} is no IP-Adapter: it has {name}", "use a file with image_proj and ip_adapter"
            )
        weights[part][rest] = tensor
    _check_attention(file, weights[ATTENTION], parts.denoiser.unet)
    _check_projection(file, weights[PROJECTION], parts.denoiser.text_width, encoder.config)
    return IPAdapter(file.stem, remembered_sha256(file), weights)


def attention_shapes(unet: Any) -> dict[str, tuple[int, int]]:
    """The shape of each weight of the attention to image tokens, by its name in a file.

    Files number the attention layers of a UNet in diffusers' order of modules: those to the text are odd.
    """
    modules = dict(unet.named_modules())
    layers = [modules[name.removesuffix(".processor")] for name in unet.attn_processors if ".attn2." in name]
    return {
        f"{2 * index + 1}.to_{part}_ip.weight": (layer.to_k.out_features, layer.to_k.in_features)
        for index, layer in enumerate(layers)
        for part in "kv"
    }


def _check_attention(file: Path, weights: Mapping[str, Tensor], unet: Any) -> None:
    """Compare the names and the shapes with the UNet's layers, in their order."""
    wanted = attention_shapes(unet)
    for name in sorted(wanted.keys() | weights.keys()):
        given = tuple(weights[name].shape) if name in weights else None
        if given != wanted.get(name):
            here = "none" if name not in wanted else shortened(list(wanted[name]))
            there = "none" if given is None else shortened(list(given))
            raise UserError(
                f"{file} is an IP-Adapter of another base model: {name} is {there}, for this model {here}",
                "use one made for this family of models",
            )


def _check_projection(file: Path, weights: Mapping[str, Tensor], text_width: int, encoder: Any) -> None:
    """Compare what makes tokens of an image with the text width and with the image encoder."""
    kinds = {
        "proj.weight": (text_width, int(encoder.projection_dim)),
        "proj_in.weight": (text_width, int(encoder.hidden_size)),
        "proj.0.weight": (text_width, int(encoder.hidden_size)),
    }
    first = next((name for name in kinds if name in weights), None)
    if first is None or ("norm.weight" not in weights and first == "proj.weight"):
        raise UserError(
            f"{file} is an IP-Adapter of an unknown kind", "base, plus and full face are supported"
        )
    if weights[first].shape[1] != kinds[first][1]:
        raise UserError(
            f"{file} needs an image encoder of width {weights[first].shape[1]}, here it is {kinds[first][1]}",
            "name the one that it was trained with: --image-encoder FOLDER",
        )
