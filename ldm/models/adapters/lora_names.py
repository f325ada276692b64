"""The names of a LoRA's tensors: in peft, in three generations of diffusers, and in kohya's programs.

A name is a layer's name and a suffix that says what the tensor is:

peft        base_model.model.mid_block.attentions.0.proj_in  .lora_A.weight  .lora_B.weight  .lora_magnitude_vector
diffusers   unet.mid_block.attentions.0.proj_in              as peft, or .lora.down.weight  .lora.up.weight
            text_encoder.text_model.encoder.layers.0.mlp.fc1 .lora_linear_layer.down.weight  ...up.weight
            mid_block.[...].attn1.processor.to_q             _lora.down.weight  _lora.up.weight   (until 2023)
kohya       lora_unet_mid_block_attentions_0_proj_in         .lora_down.weight  .lora_up.weight  .alpha  .dora_scale
            lora_te_text_model_encoder_layers_0_mlp_fc1      and lora_te1_, lora_te2_, with the UNet's layers named as
            lora_unet_middle_block_1_proj_in                 in single files, for Stable Diffusion XL

Names of the text encoder's layers contain `text_model.` in transformers before 5, and in files of all generations.
kohya's prefixes differ between families, and so do ComfyUI's: see `ldm.models.families.family.LoraNames`.

ComfyUI     diffusion_model.middle_block.1.proj_in           as kohya or peft, with the names of single files
            text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1

LyCORIS' programs write kohya's names with other suffixes: see `ldm.models.adapters.lycoris`. Those of a LoKr are peft's
as well.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from ldm.models.families.family import LoraNames

LOKR_KINDS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
"""The factors of a LoKr, by the names that all programs give them."""

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
    ".magnitude": "magnitude",  # ai-toolkit
    ".dora_scale": "dora_scale",
    ".alpha": "alpha",
    ".scalar": "scalar",
    ".lora_mid.weight": "mid",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".{kind}": kind for kind in LOKR_KINDS},
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
}
"""Suffixes of names, and which tensor of a layer each marks."""

FOREIGN = {
    "lora_te1_": "a LoRA of Stable Diffusion XL",
    "lora_te2_": "a LoRA of Stable Diffusion XL",
    "text_encoder_2.": "a LoRA of Stable Diffusion XL",
    "text_encoders.clip_g.": "a LoRA of Stable Diffusion XL",
    "double_blocks": "a LoRA of Flux",
    "single_blocks": "a LoRA of Flux",
    "joint_blocks": "a LoRA of Stable Diffusion 3",
    "lora_prior_": "a LoRA of Stable Cascade",
    "transformer.": "a LoRA of a diffusion transformer",
    "lora_transformer_": "a LoRA of a diffusion transformer",
    "oft_": "an OFT adapter",
    "boft_": "a BOFT adapter",
    "vera_lambda": "a VeRA adapter",
    "on_input": "an IA3 adapter",
    "a1.weight": "a GLoRA",
    "b1.weight": "a GLoRA",
    "lora_embedding_": "a LoRA of an embedding layer",
    "set_weight": "a file with replaced weights, not changes,",
}
"""Parts of names that are not supported, and the kind of file that has them."""

BUNDLED = "bundle_emb."
"""The beginning of the names of embeddings that OneTrainer puts beside a LoRA."""

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


def bundled_tokens(names: Iterable[str]) -> list[str]:
    """The words of the embeddings that are stored beside a LoRA."""
    return sorted({name.split(".")[1] for name in names if name.startswith(BUNDLED)})


def foreign_kind(names: Iterable[str], lora: Mapping[str, LoraNames]) -> str | None:
    """The kind of a file that is not supported, or None where no name tells.

    Args:
        names: those that belong to no layer of the model.
        lora: the names of the model's own family, which are not foreign.
    """
    own = {network.kohya_prefix for network in lora.values()} | {f"{part}." for part in lora}
    foreign = {part: kind for part, kind in FOREIGN.items() if part not in own}
    for name in names:
        for part, kind in foreign.items():
            if name.startswith(part) or f".{part}" in name or f"_{part}_" in name:
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
    if lora.kohya_is_original and lora.original_name is not None:
        layer = lora.original_name(layer) or layer
    return lora.kohya_prefix + layer.replace(".", "_")


def diffusers_name(part: str, layer: str, kind: str, *, is_text: bool) -> str:
    """A tensor's name as current diffusers reads it.

    The UNet's names keep peft's suffixes, a text encoder's get diffusers' own: under peft's suffixes, diffusers refuses
    a LoRA that does not change the attention. For a LoKr there is only peft's.
    """
    if not is_text:
        return f"{part}.{peft_name(layer, kind)}"
    ends = {
        "down": "lora_linear_layer.down.weight",
        "up": "lora_linear_layer.up.weight",
        "magnitude": "lora_magnitude_vector.weight",
    }
    return f"{part}.{TEXT_MODEL}{layer.removeprefix(TEXT_MODEL)}.{ends.get(kind, kind)}"


def peft_name(layer: str, kind: str) -> str:
    """A tensor's name as peft writes it to files, without the prefix of the layer."""
    ends = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    return f"{layer}.{ends.get(kind, kind)}"


def _unet_names(part: str, layer: str, lora: LoraNames) -> Iterator[str]:
    plain_kohya = lora.kohya_prefix + layer.replace(".", "_")
    yield from (f"{part}.{layer}", layer, PEFT_PREFIX + layer, plain_kohya)
    if lora.original_name is not None and (original := lora.original_name(layer)) is not None:
        yield from (prefix + original for prefix in lora.comfy_prefixes)
        yield lora.kohya_prefix + original.replace(".", "_")
    if match := ATTENTION.fullmatch(layer):
        old = f"{match[1]}.processor.{match[2]}"
        yield from (old, f"{part}.{old}")


def _text_names(part: str, layer: str, lora: LoraNames) -> Iterator[str]:
    yield kohya_name(layer, lora)
    plain = layer.removeprefix(TEXT_MODEL)
    yield from (prefix + TEXT_MODEL + plain for prefix in lora.comfy_prefixes)
    for name in (plain, TEXT_MODEL + plain):
        yield from (f"{part}.{name}", PEFT_PREFIX + name)
        if match := SELF_ATTENTION.fullmatch(name):
            yield f"{part}.{match[1]}.to_{match[2]}"
