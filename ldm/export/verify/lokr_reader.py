"""A LoKr file on a stock pipeline: diffusers says which layers its names mean, and peft computes the changes.

No pipeline of Stable Diffusion reads such files by itself. Two spellings are read: kohya's names with an alpha beside
each layer, and peft's names with the configuration in the header, as our adapters are stored.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.io.files import read_tensors
from ldm.io.json_files import parse_json
from ldm.io.safetensors_header import read_header

CONFIG_KEY = "lora_adapter_metadata"
NAME = "default"
OLD_ATTENTION = re.compile(r"\.to_(q|k|v|out)_lora\..*")
"""How diffusers names a text encoder's attention: `self_attn.to_q_lora.down.weight`."""

PARTS = ("unet", "text_encoder", "text_encoder_2")


def add_lokr(pipe: Any, file: Path) -> None:
    """Add a LoKr to the weights of a pipeline's networks."""
    tensors = {name: tensor.float() for name, tensor in read_tensors(file).items()}
    config = parse_json(read_header(file).metadata.get(CONFIG_KEY, "{}"))
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        layers.setdefault(stem, {})[kind] = tensor
    names = {stem: stem for stem in layers} if config else _names_by_diffusers(pipe, list(layers))
    for part in PARTS:
        own = {_inner(part, name): layers[stem] for stem, name in names.items() if _is_of(part, name)}
        scale = config[f"{part}.alpha"] / config[f"{part}.r"] if f"{part}.alpha" in config else None
        if own:
            _add(getattr(pipe, part), own, scale)


def _is_of(part: str, name: str) -> bool:
    return name.startswith(f"{part}.")


def _inner(part: str, name: str) -> str:
    return name.removeprefix(f"{part}.")


def _names_by_diffusers(pipe: Any, stems: Sequence[str]) -> dict[str, str]:
    """diffusers' names of layers, with the network's before each.

    diffusers converts the names of LoRA files, so it is given one with the number of each layer in place of weights.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    numbered: dict[str, Tensor] = {}
    for number, stem in enumerate(stems):
        weight = torch.full((1, 1), float(number))
        numbered |= {f"{stem}.lora_down.weight": weight, f"{stem}.lora_up.weight": weight}
        numbered[f"{stem}.alpha"] = torch.tensor(1.0)
    converted, *_ = pipe.lora_state_dict(numbered, unet_config=pipe.unet.config)
    found: dict[str, str] = {}
    for part in PARTS:
        own = {_inner(part, name): weight for name, weight in converted.items() if _is_of(part, name)}
        if part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        for name, weight in own.items():
            layer = OLD_ATTENTION.sub(r".\1_proj", name).partition(".lora_")[0]
            found[stems[int(weight.item())]] = f"{part}.{layer}"
    assert len(found) == len(stems), "diffusers does not know all names"
    return found


@torch.no_grad()
def _add(network: nn.Module, changes: Mapping[str, Mapping[str, Tensor]], scale: float | None) -> None:
    """Add peft's products to a network's weights; `scale` is that of all layers, if their alphas are not given."""
    from peft import LoKrConfig, inject_adapter_in_model

    named = {_name_in(network, name): factors for name, factors in changes.items()}
    inject_adapter_in_model(LoKrConfig(r=1, target_modules=list(named)), network, NAME)
    for name, factors in named.items():
        layer: Any = network.get_submodule(name)
        for kind in layer.adapter_layer_names:
            own = getattr(layer, kind)
            if NAME in own:
                del own[NAME]
            if kind in factors:
                own[NAME] = nn.Parameter(factors[kind])
        layer.scaling[NAME] = _scale(factors) if scale is None else scale
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())


def _name_in(network: nn.Module, name: str) -> str:
    """A layer's name in a network, where `text_model.` comes before it or does not, as transformers has it."""
    known = dict(network.named_modules())
    plain = name.removeprefix("text_model.")
    return next(each for each in (name, plain, f"text_model.{plain}") if each in known)


def _scale(factors: Mapping[str, Tensor]) -> float:
    """alpha / rank, but 1 where both factors are whole, as LyCORIS defines it, or no alpha is given."""
    ranks = [len(factors[kind]) for kind in ("lokr_w2_b", "lokr_w1_b") if kind in factors]
    return float(factors["alpha"]) / ranks[0] if ranks and "alpha" in factors else 1.0
