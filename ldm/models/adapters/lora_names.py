"""What the tensors of a LoRA are called: by peft, by diffusers in three ages, and by kohya's programs.

A name is that of a layer and an end that says what the tensor is:

peft        base_model.model.mid_block.attentions.0.proj_in  .lora_A.weight  .lora_B.weight  .lora_magnitude_vector
diffusers   unet.mid_block.attentions.0.proj_in              as peft, or .lora.down.weight  .lora.up.weight
            text_encoder.text_model.encoder.layers.0.mlp.fc1 .lora_linear_layer.down.weight  ...up.weight
            mid_block.[...].attn1.processor.to_q             _lora.down.weight  _lora.up.weight   (until 2023)
kohya       lora_unet_mid_block_attentions_0_proj_in         .lora_down.weight  .lora_up.weight  .alpha  .dora_scale
            lora_te_text_model_encoder_layers_0_mlp_fc1

`text_model.` stands in the names of the text encoder's layers in transformers before 5, and in files of all ages.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

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
"""Ends of names, and which tensor of a layer each marks."""

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
"""Parts of names that are read nowhere here, and what they tell of a file."""

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
"""What kohya's names begin with."""

PEFT_PREFIX = "base_model.model."
TEXT_MODEL = "text_model."
ATTENTION = re.compile(r"(.*\.attn[12])\.(to_[qkv]|to_out)(\.0)?")
SELF_ATTENTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")


def split_name(name: str) -> tuple[str, str] | None:
    """The layer in the file's naming, and a value of ENDS; None for a name that is of no LoRA."""
    for end, kind in ENDS.items():
        if name.endswith(end):
            return name.removesuffix(end), kind
    return None


def foreign_kind(names: Iterable[str]) -> str | None:
    """What a file holds that is read nowhere here, or None where no name tells."""
    for name in names:
        for part, kind in FOREIGN.items():
            if name.startswith(part) or f".{part}" in name:
                return kind
    return None


def layer_names(layers: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Every name that a file may have for a layer, and the (network, layer) that it means.

    kohya's underscores can be undone in no other way.

    Args:
        layers: for each of "unet" and "text_encoder", the names of its layers.
    """
    found: dict[str, tuple[str, str]] = {}
    for layer in layers.get("unet", ()):
        found |= {name: ("unet", layer) for name in _unet_names(layer)}
    for layer in layers.get("text_encoder", ()):
        found |= {name: ("text_encoder", layer) for name in _text_names(layer)}
    return found


def kohya_name(part: str, layer: str) -> str:
    """kohya's name of a layer: `lora_unet_mid_block_attentions_0_proj_in`."""
    if part == "text_encoder":
        layer = TEXT_MODEL + layer.removeprefix(TEXT_MODEL)
    return PREFIXES[part] + layer.replace(".", "_")


def diffusers_name(part: str, layer: str, kind: str) -> str:
    """A tensor's name as diffusers reads it today.

    The UNet's keep peft's ends, the text encoder's get diffusers' own: under peft's it refuses a LoRA that leaves the
    attention as it is.
    """
    if part != "text_encoder":
        return f"{part}.{peft_name(layer, kind)}"
    ends = {
        "down": "lora_linear_layer.down.weight",
        "up": "lora_linear_layer.up.weight",
        "magnitude": "lora_magnitude_vector.weight",
    }
    return f"{part}.{TEXT_MODEL}{layer.removeprefix(TEXT_MODEL)}.{ends[kind]}"


def peft_name(layer: str, kind: str) -> str:
    """A tensor's name as peft has it in files, without what stands before the layer."""
    ends = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    return f"{layer}.{ends[kind]}"


def _unet_names(layer: str) -> Iterator[str]:
    yield from (f"unet.{layer}", layer, PEFT_PREFIX + layer, kohya_name("unet", layer))
    if match := ATTENTION.fullmatch(layer):
        old = f"{match[1]}.processor.{match[2]}"
        yield from (old, f"unet.{old}")


def _text_names(layer: str) -> Iterator[str]:
    yield kohya_name("text_encoder", layer)
    plain = layer.removeprefix(TEXT_MODEL)
    for name in (plain, TEXT_MODEL + plain):
        yield from (f"text_encoder.{name}", PEFT_PREFIX + name)
        if match := SELF_ATTENTION.fullmatch(name):
            yield f"text_encoder.{match[1]}.to_{match[2]}"
