"""LoRA (Hu et al. 2021) with peft: low-rank changes beside frozen weights; added, copied out, applied and fused.

A changed layer computes W x + alpha/rank B A x, or with DoRA (Liu et al. 2024) that direction times a trained length.
B starts at zero, so an untrained LoRA changes nothing. A LoKr has other factors: see `ldm.models.adapters.lokr`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ldm.config import Settings
from ldm.errors import UserError, unknown_name
from ldm.models.adapters.peft_config import check_expressions
from ldm.models.dropout import KeyedDropout
from ldm.noise import generator_for

NAME = "default"
"""peft's name of the adapter inside a network."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
FEEDFORWARD = ("ff.net.0.proj", "ff.net.2", "fc1", "fc2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
REST = ("proj_in", "proj_out", "time_emb_proj", *CONVOLUTIONS)
TARGETS = {
    "attention": ATTENTION,
    "attention+feedforward": ATTENTION + FEEDFORWARD,
    "all": ATTENTION + FEEDFORWARD + REST,
}
"""Layers by the ends of their names, in all networks; "all" means every layer of the UNet's blocks."""

CONFIG_KEYS = ("r", "lora_alpha", "target_modules", "use_dora", "rank_pattern", "alpha_pattern")
"""The keys of peft's configuration that a LoRA's meaning depends on."""

LOKR_KEYS = ("peft_type", "r", "alpha", "target_modules", "decompose_factor", "rank_pattern", "alpha_pattern")
"""The same of a LoKr, in `peft.LoKrConfig`."""

LOKR = "LOKR"
"""The `peft_type` in the configuration of a LoKr; that of a LoRA has none."""

START_HAS_ITS_OWN = ("kind", "rank", "alpha", "factor", "target_modules", "use_dora")
"""Settings that a LoRA to continue from already has."""


class LoraSettings(Settings):
    """The size of a LoRA and the layers that it changes."""

    kind: Literal["lora", "lokr"] = Field(
        "lora", description="lokr: Kronecker products, with fewer weights for the same rank"
    )
    rank: int = Field(16, ge=1, description="of each change; a higher rank can learn more")
    factor: int | None = Field(
        None,
        ge=2,
        description="of a lokr: the size of the smaller factor, such as 8; default: both of about the same size",
    )
    alpha: float | None = Field(
        None, gt=0, description="a change is scaled by alpha / rank; default: the rank"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="fraction of a change's inputs dropped in training")
    target_modules: str | tuple[str, ...] = Field(
        "attention",
        description="attention, attention+feedforward, all (with convolutions), or names of layers",
    )
    use_dora: bool = Field(False, description="train each layer's magnitude apart from its direction (DoRA)")
    text_encoder: bool = Field(False, description="change the text encoder as well")
    start: Path | None = Field(
        None,
        description="a LoRA to continue from, a file with any names or a folder; rank, alpha and layers are its own",
    )

    @field_validator("target_modules")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str) and value not in TARGETS:
            raise ValueError(f"choose {', '.join(TARGETS)}, or write a list such as [to_q, to_v]")
        if not value:
            raise ValueError("name at least one layer, such as to_q")
        return value

    @model_validator(mode="after")
    def _kind_agrees(self) -> "LoraSettings":
        if self.kind == "lokr" and self.use_dora:
            raise ValueError("use_dora is given, but kind is lokr: leave one of the two out")
        if self.kind != "lokr" and self.factor is not None:
            raise ValueError("factor is given, but kind is lora: set kind: lokr, or leave factor out")
        return self

    @model_validator(mode="after")
    def _start_has_its_own(self) -> "LoraSettings":
        for name in START_HAS_ITS_OWN if self.start is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is given, but the LoRA of start has its own: leave it out")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The ends of the names of the layers to change."""
        return TARGETS[self.target_modules] if isinstance(self.target_modules, str) else self.target_modules


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA outside of any network: every file format is written from it and read into it.

    Attributes:
        tensors: by peft's names after the network's: `unet.mid_block.attentions.0.proj_in.lora_A.weight`,
            `text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight`.
        configs: for each network `r`, `lora_alpha`, `target_modules`, `use_dora` and, where layers differ,
            `rank_pattern` and `alpha_pattern`, as in `peft.LoraConfig`. Those of a LoKr are as in `peft.LoKrConfig`.
        changes: of whole weights and biases, by the parameter's name after the network's: what files hold besides a
            LoRA. They can be added to a model, but not trained or written.
    """

    tensors: dict[str, Tensor]
    configs: dict[str, dict[str, Any]]
    changes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_lokr(self) -> bool:
        """Whether the changes are Kronecker products."""
        return any(map(is_lokr_config, self.configs.values()))


def is_lokr_config(config: Mapping[str, Any]) -> bool:
    """Whether a network's configuration is of a LoKr."""
    return config.get("peft_type") == LOKR


def add_lora(networks: Mapping[str, nn.Module], settings: LoraSettings, seed: int) -> None:
    """Add an untrained LoRA to `networks["unet"]`, and to the text encoders if the settings say so.

    Its weights are float32 whatever the network's are, and each factor is a pure function of (seed, network, layer).
    The networks' outputs stay the same to the last bit.

    Raises:
        UserError: a name in `target_modules` is not a linear or convolution layer of these networks, or DoRA is asked
            for with half-precision weights, whose magnitudes are too coarse to start from.
    """
    changed = {part: one for part, one in networks.items() if part == "unet" or settings.text_encoder}
    if not isinstance(settings.target_modules, str):
        _check_targets(
            settings.target_modules, [n for network in changed.values() for n in changeable_layers(network)]
        )
    configs = {part: _new_config(part, network, settings) for part, network in changed.items()}
    for part, network in changed.items():
        _inject(network, configs[part], settings.dropout)
        _draw_start(network, part, seed)


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The weights of the LoRA in a network; empty without a LoRA."""
    return [parameter for name, parameter in network.named_parameters() if _is_lora(name)]


def lora_weights(networks: Mapping[str, nn.Module]) -> LoraWeights:
    """A copy of the LoRA that is in the networks, on the CPU in float32."""
    tensors: dict[str, Tensor] = {}
    configs: dict[str, dict[str, Any]] = {}
    for part, network in networks.items():
        if lora_parameters(network):
            configs[part] = _config(network)
            live = _live_tensors(network).items()
            tensors |= {f"{part}.{name}": t.detach().float().cpu().clone() for name, t in live}
    return LoraWeights(tensors, configs)


def apply_lora(
    networks: Mapping[str, nn.Module],
    weights: LoraWeights,
    *,
    scale: float = 1.0,
    fuse: bool = True,
    dropout: float = 0.0,
) -> None:
    """Apply a trained LoRA to networks that have none.

    Args:
        scale: of the change; 1 is as trained, 0 leaves the networks unchanged (except for a DoRA's magnitudes).
        fuse: add the change to the weights, so that the networks are plain again; otherwise it stays apart, to be
            trained further.
        dropout: of a LoRA that is trained further.

    Raises:
        UserError: the LoRA is of another network, or its configuration is not understood, or it has changes that
            cannot be trained.
    """
    if weights.changes and not fuse:
        raise UserError(
            f"the LoRA changes {min(weights.changes)} by more than a LoRA",
            "only LoRA and DoRA can be trained further",
        )
    for part, config in weights.configs.items():
        if part not in networks:
            raise unknown_name("network in the LoRA", part, networks)
        known = _config_keys(config)
        if unknown := set(config) - set(known):
            raise unknown_name("key in the LoRA's configuration", min(unknown), known)
        own = {n.removeprefix(f"{part}."): t for n, t in weights.tensors.items() if n.startswith(f"{part}.")}
        _check_config(part, config, own, networks[part])
        _inject(networks[part], config, dropout)
        _fill(networks[part], own, part)
        if fuse:
            fuse_lora(networks[part], scale)
        else:
            _scale(networks[part], scale)
    add_changes(networks, weights.changes, scale)


def _check_config(
    part: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module
) -> None:
    """Refuse what peft would take too long to match, or allocate more memory for than the tensors take."""
    check_expressions(f"the LoRA of {part!r}", config, changeable_layers(network))
    if is_lokr_config(config):  # its factors are never larger than the layer
        return
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    held = max((len(tensor) for name, tensor in tensors.items() if ".lora_A." in name), default=0)
    if wrong := [rank for rank in ranks if type(rank) is not int or rank > held]:
        raise UserError(
            f"the LoRA of {part!r} has rank {held}, and its configuration {wrong[0]!r}", "restore the file"
        )


@torch.no_grad()
def add_changes(networks: Mapping[str, nn.Module], changes: Mapping[str, Tensor], scale: float) -> None:
    """Add changes of whole weights and biases, by the parameters' names after the networks'.

    Raises:
        UserError: a sum is not finite.
    """
    for name, change in changes.items():
        part, _, parameter = name.partition(".")
        weight = networks[part].get_parameter(parameter)
        weight.add_((scale * change).to(weight))
        if not weight.isfinite().all():
            raise UserError(f"the LoRA makes {name} infinite or NaN", "use another file")


@torch.no_grad()
def fuse_lora(network: nn.Module, scale: float = 1.0) -> None:
    """Add a network's LoRA to its weights, in their dtype, and remove peft's layers.

    Raises:
        UserError: the sum is not finite.
    """
    _scale(network, scale)
    for name, layer in list(_lora_layers(network)):
        try:
            layer.merge(safe_merge=True)
        except ValueError:
            raise UserError(f"the LoRA makes {name} infinite or NaN", "use another checkpoint") from None
        network.set_submodule(name, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def changeable_layers(network: nn.Module) -> list[str]:
    """The names of the layers that a LoRA can change."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _check_targets(targets: Sequence[str], layers: Sequence[str]) -> None:
    for target in targets:
        if not any(_is_named(name, target) for name in layers):
            ends = dict.fromkeys(name.rpartition(".")[2] for name in layers if not name[-1].isdigit())
            raise unknown_name("layer in lora.target_modules", target, ends)


def _is_lora(name: str) -> bool:
    return any(kind in name for kind in (".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".lokr_"))


def _lora_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lokr import LoKrLayer
    from peft.tuners.lora import LoraLayer

    for name, module in network.named_modules():
        if isinstance(module, LoraLayer | LoKrLayer):
            yield name, module


def _new_config(part: str, network: nn.Module, settings: LoraSettings) -> dict[str, Any]:
    dtype = next(network.parameters()).dtype
    if settings.use_dora and dtype != torch.float32:
        raise UserError(f"lora.use_dora on a model in {dtype}", "load the model in float32")
    layers = changeable_layers(network)
    names = [target for target in settings.names if any(_is_named(name, target) for name in layers)]
    if not names:
        raise UserError(
            f"lora.target_modules matches no layer of the {part}", "name one, or choose attention"
        )
    size = {"r": settings.rank, "target_modules": names}
    alpha = settings.alpha or settings.rank
    if settings.kind == "lokr":
        return {**size, "peft_type": LOKR, "alpha": alpha, "decompose_factor": settings.factor or -1}
    return {**size, "lora_alpha": alpha, "use_dora": settings.use_dora}


def _inject(network: nn.Module, config: Mapping[str, Any], dropout: float = 0.0) -> None:
    """Insert peft's layers. The global generator is restored; the caller overwrites what they drew from it."""
    assert not lora_parameters(network), "this network has a LoRA already: fuse it first"
    insert = _inject_lokr if is_lokr_config(config) else _inject_lora
    try:
        with torch.random.fork_rng(devices=[]):
            insert(network, config, dropout)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the LoRA does not fit ({str(error).splitlines()[0]})", "is it of another model?"
        ) from None
    for parameter in lora_parameters(network):
        parameter.data = parameter.data.float()
    network.train(network.training)  # new layers come in training mode


def _inject_lora(network: nn.Module, config: Mapping[str, Any], dropout: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(lora_dropout=dropout, **config), network, adapter_name=NAME)
    for name, layer in _lora_layers(network) if dropout else ():
        layer.lora_dropout[NAME] = KeyedDropout(dropout, name)


def _inject_lokr(network: nn.Module, config: Mapping[str, Any], dropout: float) -> None:
    from ldm.models.adapters.lokr import inject

    inject(network, config, NAME, dropout)


@torch.no_grad()
def _draw_start(network: nn.Module, part: str, seed: int) -> None:
    """Initialise A as `nn.Linear` is, and B with zeros."""
    if is_lokr_config(_config(network)):
        from ldm.models.adapters.lokr import draw_start

        return draw_start(network, lambda factor: generator_for(seed, "lora", part, factor))
    for name, layer in _lora_layers(network):
        weight = layer.lora_A[NAME].weight
        start = torch.empty(weight.shape)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator_for(seed, "lora", part, name))
        weight.copy_(start)
        layer.lora_B[NAME].weight.zero_()


def _config(network: nn.Module) -> dict[str, Any]:
    config: Any = network.peft_config[NAME]  # type: ignore[index]
    is_lokr = config.peft_type == LOKR
    found = {key: getattr(config, key) for key in (LOKR_KEYS if is_lokr else CONFIG_KEYS)}
    targets = found["target_modules"]
    found["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return found | {"peft_type": LOKR} if is_lokr else found


def _config_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    return LOKR_KEYS if is_lokr_config(config) else CONFIG_KEYS


def _live_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by peft's names in files; they share the network's memory."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(
        network, adapter_name=NAME, save_embedding_layers=False
    )
    return found


@torch.no_grad()
def _fill(network: nn.Module, tensors: Mapping[str, Tensor], part: str) -> None:
    live = _live_tensors(network)
    # our files leave `text_model.` out, which the layers of a text encoder with a projection have
    tensors = {_name_in(live, name): tensor for name, tensor in tensors.items()}
    for name in sorted(live.keys() | tensors.keys()):
        wanted, given = (list(t[name].shape) if name in t else "none" for t in (live, tensors))
        if wanted != given:
            raise UserError(
                f"LoRA tensor {part}.{name} is {given}, the model has {wanted}", "is it of another model?"
            )
        live[name].copy_(tensors[name])


def _name_in(live: Collection[str], name: str) -> str:
    """A tensor's name in a network, where it may begin with `text_model.`; unchanged if the network has neither."""
    return f"text_model.{name}" if name not in live and f"text_model.{name}" in live else name


def _scale(network: nn.Module, scale: float) -> None:
    for _, layer in _lora_layers(network):
        layer.set_scale(NAME, scale)
