"""Names of a CLIP text tower's weights in transformers' CLIPTextModel and in open_clip."""

from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OUTSIDE_BACK = {original: name for name, original in _OUTSIDE.items()}
_INSIDE_BACK = {original: name for name, original in _INSIDE.items()}
_LAYERS, _BLOCKS = "encoder.layers.", "transformer.resblocks."


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's weights by open_clip's names; query, key and value of a layer become one tensor.

    Raises:
        KeyError: a name that CLIPTextModel does not have.
    """
    named = {_OUTSIDE[name]: tensor for name, tensor in weights.items() if not name.startswith(_LAYERS)}
    for name, tensor in weights.items():
        if not name.startswith(_LAYERS):
            continue
        layer, module, kind = _split(name, _LAYERS)
        if module == "self_attn.q_proj":
            joint = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            named[f"{_BLOCKS}{layer}.attn.in_proj_{kind}"] = torch.cat(joint)
        elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
            named[f"{_BLOCKS}{layer}.{_INSIDE[module]}.{kind}"] = tensor
    return named


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_open_clip`.

    Raises:
        KeyError: a name that an open_clip text tower does not have.
    """
    named = {_OUTSIDE_BACK[name]: tensor for name, tensor in weights.items() if not name.startswith(_BLOCKS)}
    for name, tensor in weights.items():
        if not name.startswith(_BLOCKS):
            continue
        layer, module, kind = _split(name.replace("in_proj_", "in_proj."), _BLOCKS)
        if module == "attn.in_proj":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                named[f"{_LAYERS}{layer}.self_attn.{letter}_proj.{kind}"] = part
        else:
            named[f"{_LAYERS}{layer}.{_INSIDE_BACK[module]}.{kind}"] = tensor
    return named


def _split(name: str, prefix: str) -> tuple[str, str, str]:
    """`encoder.layers.3.mlp.fc1.weight` as ("3", "mlp.fc1", "weight").

    Raises:
        KeyError: the name has no such parts.
    """
    layer, _, rest = name.removeprefix(prefix).partition(".")
    module, _, kind = rest.rpartition(".")
    if not layer.isdecimal() or not module:
        raise KeyError(name)
    return layer, module, kind
