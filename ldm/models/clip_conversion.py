"""An open_clip model from settings, and its text tower as a transformers CLIPTextModel with the same outputs."""

from typing import Self

import open_clip.model
import torch
from open_clip.transformer import QuickGELU
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.config import Settings
from ldm.errors import UserError
from ldm.models.families.open_clip_names import from_open_clip


class ClipShape(Settings):
    """The shape of a CLIP model: an image tower and a text tower with a shared embedding space."""

    embed_dim: int = Field(default=256, ge=1, description="width of the shared embedding space")
    patch_size_px: int = Field(
        default=8, ge=1, description="side of a patch; must divide both sides of the image"
    )
    vision_width: int = Field(default=256, ge=1, description="width of the image tower")
    vision_layers: int = Field(default=4, ge=1)
    vision_heads: int = Field(default=4, ge=1, description="must divide vision_width")
    text_width: int = Field(default=256, ge=1, description="width of the prompt embeddings")
    text_layers: int = Field(default=4, ge=1)
    text_heads: int = Field(default=4, ge=1, description="must divide text_width")
    context_length: int = Field(default=32, ge=3, description="tokens per prompt, start and end included")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{tower}_heads = {heads} must divide {tower}_width = {width}")
        return self


def make_open_clip(
    shape: ClipShape, *, vocab_size: int, image_size_px: tuple[int, int]
) -> open_clip.model.CLIP:
    """An open_clip model with fresh weights, drawn from torch's global generator; GELU, float32.

    Args:
        shape: the widths and depths.
        vocab_size: of the tokenizer; the end token must have the highest id, as open_clip looks for it there.
        image_size_px: height and width of the images.

    Raises:
        UserError: the images are not a whole number of patches.
    """
    if any(side % shape.patch_size_px for side in image_size_px):
        size = " x ".join(str(side) for side in image_size_px)
        raise UserError(
            f"patch_size_px = {shape.patch_size_px}", f"choose a divisor of the image size, {size}"
        )
    return open_clip.model.CLIP(
        embed_dim=shape.embed_dim,
        vision_cfg=open_clip.model.CLIPVisionCfg(
            layers=shape.vision_layers,
            width=shape.vision_width,
            head_width=shape.vision_width // shape.vision_heads,
            patch_size=shape.patch_size_px,
            image_size=image_size_px,
        ),
        text_cfg=open_clip.model.CLIPTextCfg(
            context_length=shape.context_length,
            vocab_size=vocab_size,
            width=shape.text_width,
            heads=shape.text_heads,
            layers=shape.text_layers,
        ),
    )


def to_transformers(model: open_clip.model.CLIP) -> CLIPTextModel:
    """The text tower of an open_clip model as a CLIPTextModel in evaluation mode, with copied weights.

    For token ids [B, L] from a CLIP tokenizer, `last_hidden_state` [B, L, D] is the tower's output after its
    final layer norm, and `pooler_output` [B, D] that of the first end token: `encode_text` before the text
    projection. The start and end tokens must be the two highest ids.

    Raises:
        ValueError: the tower has parts that a CLIPTextModel does not have, for instance layer scales.
    """
    text_model = CLIPTextModel(_text_config(model))
    weights = _text_weights(model)
    expected = dict(text_model.named_parameters())
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())
        raise ValueError(f"not a plain CLIP text tower: {odd[0]}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(weights[name])
    return text_model.eval()


def _text_config(model: open_clip.model.CLIP) -> CLIPTextConfig:
    """The tower's settings, read from its modules so that they match the weights."""
    block = model.transformer.resblocks[0]
    vocab_size, width = model.token_embedding.weight.shape
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=block.mlp.c_fc.out_features,
        projection_dim=model.text_projection.shape[1],
        num_hidden_layers=len(model.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=model.context_length,
        hidden_act=_activation_name(block.mlp.gelu),
        layer_norm_eps=model.ln_final.eps,
        # Never 2: transformers takes that id as the mark of old files and would pool at the highest id.
        eos_token_id=vocab_size - 1,
        bos_token_id=vocab_size - 2,
        pad_token_id=vocab_size - 1,
    )


def _activation_name(activation: nn.Module) -> str:
    """transformers' name of the activation."""
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return "gelu"
    raise ValueError(f"not an activation of CLIP: {activation}")


TEXT_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
"""How the names of a text tower's weights begin in open_clip."""


def _text_weights(model: open_clip.model.CLIP) -> dict[str, Tensor]:
    """The text tower's weights by the names of CLIPTextModel."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(TEXT_TOWER)}
    try:
        return from_open_clip(own)
    except KeyError as error:
        odd = next(name for name in own if error.args[0] in name)
        raise ValueError(f"not a plain CLIP text tower: {odd}") from None
