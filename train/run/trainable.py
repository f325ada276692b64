"""Which parts of a model are trained, with which learning rates, and how the result is saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ldm.config import Settings, checked_by
from ldm.errors import UserError, warn
from ldm.models.adapters.embedding import (
    EmbeddingSettings,
    add_embedding,
    embedding_file,
    embedding_vectors,
)
from ldm.models.adapters.folder import Adapter, Base, save_adapter
from ldm.models.adapters.lora import (
    LoraSettings,
    LoraWeights,
    add_lora,
    apply_lora,
    lora_parameters,
    lora_weights,
)
from ldm.models.adapters.lora_files import read_lora_file
from ldm.models.attention import AttentionBackend, choose_attention
from ldm.models.control.controlnet import ControlledUNet, with_fresh_controlnet
from ldm.models.control.hints import HINT_KINDS, check_kind
from ldm.models.dropout import key_dropout
from ldm.models.engines.compiled import compile_unet
from ldm.models.families.family import LoraNames
from ldm.models.families.stable_diffusion import SD1
from ldm.models.loading.model import ModelParts, save_parts

from ..loop.optim import ParameterGroup

Trainable = Literal["unet", "lora", "text_encoder", "unet+text_encoder", "embedding", "controlnet"]


class ControlNetSettings(Settings):
    """The ControlNet to train."""

    kind: Annotated[str, checked_by(check_kind)] = Field(
        description="what its control images are: " + ", ".join(HINT_KINDS)
    )


class TrainableSettings(Settings):
    """What is trained, and how memory and time are saved."""

    trainable: Trainable = Field(
        "unet",
        description="embedding: a new token (textual inversion); controlnet: for the tasks control and control-labels",
    )
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate; default: optim.learning_rate"
    )
    lora: LoraSettings = LoraSettings()
    embedding: EmbeddingSettings | None = Field(None, description="only for trainable: embedding")
    controlnet: ControlNetSettings | None = Field(None, description="only for trainable: controlnet")
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations instead of keeping them: less memory, about a third slower",
    )
    channels_last: bool | None = Field(
        None, description="memory layout of the UNet, faster for bf16 and fp16 convolutions; default: on CUDA"
    )
    compile: bool = Field(
        False,
        description="compile the UNet: faster on CUDA, after a minute or more for each image size",
    )
    attention: AttentionBackend = Field("sdpa", description="xformers: refused unless a test call succeeds")

    @model_validator(mode="after")
    def _agree(self) -> "TrainableSettings":
        if self.trainable == "embedding" and self.embedding is None:
            raise ValueError("trainable: embedding needs embedding: {token: <name>, initial_word: WORD}")
        if self.trainable != "embedding" and self.embedding is not None:
            raise ValueError(
                f"embedding is given, but trainable is {self.trainable}: set trainable: embedding, or leave out "
                "embedding"
            )
        if (self.trainable == "controlnet") != (self.controlnet is not None):
            raise ValueError(
                "trainable: controlnet and controlnet: {kind: canny} belong together: give both, or leave both out"
            )
        if self.trainable != "lora" and self.lora != LoraSettings():
            raise ValueError(
                f"lora is given, but trainable is {self.trainable}: set trainable: lora, or leave out lora to train "
                f"the {self.trainable}"
            )
        if self.text_encoder_learning_rate is not None and not self.trains_text_encoder:
            raise ValueError(
                "text_encoder_learning_rate is given, but the text encoder is not trained: leave it out, or train the "
                "text encoder with trainable: unet+text_encoder or lora.text_encoder: true"
            )
        return self

    @property
    def trains_text_encoder(self) -> bool:
        """Whether gradients flow through the text encoder; prompts are then encoded in every step."""
        if self.trainable == "lora":
            return self.lora.text_encoder
        return self.trainable not in ("unet", "controlnet")

    @property
    def is_adapter(self) -> bool:
        """Whether the result is saved apart from its base model."""
        return self.trainable in ("lora", "embedding", "controlnet")


def choose_trained(
    parts: ModelParts, settings: TrainableSettings, *, seed: int, learning_rate: float
) -> list[ParameterGroup]:
    """Set up a model for training: add new weights if requested, and enable gradients only for what is trained.

    Call it once, before the model is moved to its device and before the optimizer is made.

    Args:
        seed: for a LoRA's random initial weights.
        learning_rate: of the groups with `lr_scale` 1.

    Raises:
        UserError: the LoRA's layers, the LoRA to start from, or the new token do not fit the model.
    """
    for module in parts.modules().values():
        module.requires_grad_(False)
    unet, text_models = parts.denoiser.unet, [each.model for each in parts.text_encoder.encoders]
    scale = (settings.text_encoder_learning_rate or learning_rate) / learning_rate
    if settings.trainable == "lora":
        put_in_lora(parts.lora_networks(), settings.lora, seed, parts.family.lora)
        groups = [
            _group("unet", lora_parameters(unet)),
            _group("text_encoder", [p for one in text_models for p in lora_parameters(one)], scale),
        ]
    elif settings.trainable == "controlnet":
        parts.denoiser = controlled = with_fresh_controlnet(parts, seed)
        groups = [_group("controlnet", list(controlled.controlnet.parameters()))]
    elif settings.trainable == "embedding":
        assert settings.embedding is not None
        add_embedding(parts.text_encoder, settings.embedding)
        # weight decay would pull the new tokens towards zero, which is no word
        groups = [_group("embedding", embedding_vectors(parts.text_encoder), scale) | {"weight_decay": 0.0}]
    else:
        named = settings.trainable.split("+")
        groups = [_group("unet", list(unet.parameters()))] if "unet" in named else []
        if "text_encoder" in named:
            groups.append(_group("text_encoder", [p for one in text_models for p in one.parameters()], scale))
    key_dropout(unet)
    for text_model in text_models:
        warn_of_attention_dropout(text_model, trained=settings.trains_text_encoder)
    unread = parts.text_encoder.unread_modules()
    for module in unread:
        module.requires_grad_(False)  # new layers of a LoRA in them
    groups = [_without(unread, group) for group in groups]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    return groups


def warn_of_attention_dropout(text_model: nn.Module, *, trained: bool) -> None:
    """Warn if a text encoder that is trained drops attention weights: it draws them itself, batch by batch."""
    dropped = getattr(text_model.config, "attention_dropout", 0.0)
    if trained and dropped:
        warn(
            f"the text encoder has attention_dropout {dropped} in its config.json: its result depends on "
            "max_micro_batch and the number of processes; set it to 0 there to rule that out"
        )


def put_in_lora(
    networks: dict[str, nn.Module],
    settings: LoraSettings,
    seed: int,
    names: Mapping[str, LoraNames] = SD1.lora,
) -> None:
    """Add the LoRA to train: a new one, or the one to start from.

    Raises:
        UserError: it does not fit the networks, or changes other networks than the settings say.
    """
    if settings.start is None:
        return add_lora(networks, settings, seed)
    weights = read_lora_file(settings.start, networks, names)
    if settings.text_encoder != any(names[part].is_text for part in weights.configs):
        does, hint = ("does not change", "false") if settings.text_encoder else ("changes", "true")
        raise UserError(f"{settings.start} {does} the text encoder", f"set lora.text_encoder: {hint}")
    apply_lora(networks, weights, fuse=False, dropout=settings.dropout)


def _as_trained(settings: LoraSettings, weights: LoraWeights) -> LoraSettings:
    """The settings of a LoRA that started from another: that one's rank and layers, without its path."""
    if settings.start is None:
        return settings
    config = next(iter(weights.configs.values()))
    own = {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "target_modules": tuple(
            sorted({name for c in weights.configs.values() for name in c["target_modules"]})
        ),
        "use_dora": config["use_dora"],
        "start": None,
    }
    return settings.model_copy(update=own)


def _group(name: str, parameters: list[nn.Parameter], lr_scale: float = 1.0) -> ParameterGroup:
    return {"name": name, "params": parameters, "lr_scale": lr_scale}


def _without(modules: Sequence[nn.Module], group: ParameterGroup) -> ParameterGroup:
    """A group without the parameters of some modules, which would get no gradient."""
    left_out = {id(parameter) for module in modules for parameter in module.parameters()}
    return {**group, "params": [each for each in group["params"] if id(each) not in left_out]}


def apply_memory_settings(parts: ModelParts, settings: TrainableSettings, device: torch.device) -> None:
    """Gradient checkpointing, memory layout, attention and compiling, on a model after `choose_trained`.

    Raises:
        UserError: xformers was requested and does not run on `device`.
    """
    unet, text_models = parts.denoiser.unet, [each.model for each in parts.text_encoder.encoders]
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if isinstance(parts.denoiser, ControlledUNet):
            parts.denoiser.controlnet.enable_gradient_checkpointing()
        for text_model in text_models if settings.trains_text_encoder else ():
            # transformers renamed it within version 5
            enable = getattr(text_model, "activation_checkpointing_enable", None)
            (enable or text_model.gradient_checkpointing_enable)({"use_reentrant": False})
    on_cuda = device.type == "cuda"
    if on_cuda if settings.channels_last is None else settings.channels_last:
        unet.to(memory_format=torch.channels_last)
    choose_attention(unet, settings.attention, device)
    if settings.compile:
        compile_unet(unet)


def check_base(settings: TrainableSettings, base: str | None) -> None:
    """Refuse to train an adapter or the text encoder without a base model.

    Raises:
        UserError: `trainable` needs a base model and there is none.
    """
    if base is None and "unet" not in settings.trainable:
        raise UserError(f"trainable = {settings.trainable!r} without a base model", "set base: MODEL")


def save_trained(
    parts: ModelParts,
    folder: Path,
    settings: TrainableSettings,
    base: Base | None,
    *,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write the model to `folder`, replacing what is there: the whole model, or only the adapter.

    Args:
        base: the model that the adapter was trained on, from `ldm.models.adapters.folder.find_base` before training.

    Raises:
        UserError: the disk is full or not writable.
    """
    if not settings.is_adapter:
        save_parts(parts, folder, provenance=provenance, replace=True)
        return
    assert base is not None
    own: Settings
    if settings.trainable == "lora":
        weights: Any = lora_weights(parts.lora_networks())
        own = _as_trained(settings.lora, weights)
    elif settings.trainable == "controlnet":
        assert settings.controlnet is not None and isinstance(parts.denoiser, ControlledUNet)
        own, weights = settings.controlnet, parts.denoiser.controlnet
    else:
        assert settings.embedding is not None
        own = settings.embedding
        weights = embedding_file(parts.text_encoder, settings.embedding.token)
    adapter = Adapter(
        kind=settings.trainable,
        base=base.given,
        base_weights_hash=base.weights_hash,
        scheduler_config=parts.scheduler_config,
        settings=own.model_dump(mode="json"),
        base_parts=dict(base.parts),
    )
    save_adapter(folder, adapter, weights, parts.defaults, provenance=provenance, replace=True)
