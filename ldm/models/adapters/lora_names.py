"""The names of a LoRA's tensors: in peft, in three generations of diffusers, and in kohya's programs.

A name is a layer's name and a suffix that says what the tensor is:

peft        base_model.model.mid_block.attentions.0.proj_in  .lora_A.weight  .lora_B.weight  .lora_magnitude_vector
diffusers   unet.mid_block.attentions.0.proj_in              as peft, or .lora.down.weight  .lora.up.weight
            text_encoder.text_model.encoder.layers.0.mlp.fc1 .lora_linear_layer.down.weight  ...up.weight
            mid_block.[...].attn1.processor.to_q             _lora.down.weight  _lora.up.weight   (until 2023)
kohya       lora_unet_mid_block_attentions_0_proj_in         .lora_down.weight  .lora_up.weight  .alpha  .dora_scale
            lora_te_text_model_encoder_layers_0_mlp_fc1

Names of the text encoder's layers contain `text_model.` in transformers before 5, and in files of all generations.
kohya's prefixes differ between families: see `ldm.models.families.family.LoraNames`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from ldm.models.families.family import LoraNames

ENDS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".dora_scale": "dora_scale",
    ".alpha": "alpha",
}
"""Suffixes of names, and which tensor of a layer each marks."""

FOREIGN = {
    "lora_te1_": "a LoRA of Stable Diffusion XL",
    "lora_te2_": "a LoRA of Stable Diffusion XL",
    "text_encoder_2.": "a LoRA of Stable Diffusion XL",
    "transformer.": "a LoRA of a diffusion transformer",
    "lora_mid.": "a LoCon with a middle part (Tucker)",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT adapter",
}
"""Parts of names that are not supported, and the kind of file that has them."""

PEFT_PREFIX = "base_model.model."
TEXT_MODEL = "text_model."
ATTENTION = re.compile(r"(.*\.attn[12])\.(to_[qkv]|to_out)(\.0)?")
SELF_ATTENTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")


def split_name(name: str) -> tuple[str, str] | None:
    """The layer as the file names it, and a value of ENDS; None for a name that does not belong to a LoRA."""
    for end, kind in ENDS.items():
        if name.endswith(end):
            return name.removesuffix(end), kind
    return None


def foreign_kind(names: Iterable[str], lora: Mapping[str, LoraNames]) -> str | None:
    """The kind of a file that is not supported, or None where no name tells.

    Args:
        lora: the names of the model's own family, which are not foreign.
    """
    own = {network.kohya_prefix for network in lora.values()} | {f"{part}." for part in lora}
    foreign = {part: kind for part, kind in FOREIGN.items() if part not in own}
    for name in names:
        for part, kind in foreign.items():
            if name.startswith(part) or f".{part}" in name:
                return kind
    return None


def layer_names(
    layers: Mapping[str, Iterable[str]], lora: Mapping[str, LoraNames]
) -> dict[str, tuple[str, str]]:
    """Every name that a file may have for a layer, and the (network, layer) that it means.

    There is no other way to undo kohya's underscores.

    Args:
        layers: for each network, the names of its layers.
        lora: the names of the model's family.
    """
    found: dict[str, tuple[str, str]] = {}
    for part, own in layers.items():
        names_of = _text_names if lora[part].is_text else _unet_names
        for layer in own:
            found |= {name: (part, layer) for name in names_of(part, layer, lora[part])}
    return found


def kohya_name(layer: str, lora: LoraNames) -> str:
    """kohya's name of a layer: `lora_unet_mid_block_attentions_0_proj_in`."""
    if lora.is_text:
        layer = TEXT_MODEL + layer.removeprefix(TEXT_MODEL)
    return lora.kohya_prefix + layer.replace(".", "_")


def diffusers_name(part: str, layer: str, kind: str, *, is_text: bool) -> str:
    """A tensor's name as current diffusers reads it.

    The UNet's names keep peft's suffixes, a text encoder's get diffusers' own: under peft's suffixes, diffusers refuses
    a LoRA that does not change the attention.
    """
    if not is_text:
        return f"{part}.{peft_name(layer, kind)}"
    ends = {
        "down": "lora_linear_layer.down.weight",
        "up": "lora_linear_layer.up.weight",
        "magnitude": "lora_magnitude_vector.weight",
    }
    return f"{part}.{TEXT_MODEL}{layer.removeprefix(TEXT_MODEL)}.{ends[kind]}"


def peft_name(layer: str, kind: str) -> str:
    """A tensor's name as peft writes it to files, without the prefix of the layer."""
    ends = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    return f"{layer}.{ends[kind]}"


def _unet_names(part: str, layer: str, lora: LoraNames) -> Iterator[str]:
    yield from (f"{part}.{layer}", layer, PEFT_PREFIX + layer, kohya_name(layer, lora))
    if match := ATTENTION.fullmatch(layer):
        old = f"{match[1]}.processor.{match[2]}"
        yield from (old, f"{part}.{old}")


def _text_names(part: str, layer: str, lora: LoraNames) -> Iterator[str]:
    yield kohya_name(layer, lora)
    plain = layer.removeprefix(TEXT_MODEL)
    for name in (plain, TEXT_MODEL + plain):
        yield from (f"{part}.{name}", PEFT_PREFIX + name)
        if match := SELF_ATTENTION.fullmatch(name):
            yield f"{part}.{match[1]}.to_{match[2]}"
