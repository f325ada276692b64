"""Names of weights in diffusers and transformers, and in the single files of the original programs.

One table per network maps the names of modules in diffusers to those in the file; it is used in both directions. The
tables are for levels of two resnets each, of any width: four levels, or the three of Stable Diffusion XL's UNet.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from ldm.models.families.family import OriginalNetwork, Weights
from ldm.models.families.open_clip_names import from_open_clip, to_open_clip

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
FIRST_OF_TWO, SECOND_OF_TWO = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
"""How the names in the file begin; text encoders have different layouts in each version."""

NUM_LEVELS, NUM_RESNETS = 4, 2
XL_LEVELS = 3

LAYERS_OF_VIT_H = 24
"""Layers of open_clip's text encoder; Stable Diffusion 2 reads the output of the last but one."""


def unet_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """A `UNet2DConditionModel`'s weights by the original names; KeyError for a name without one."""
    return {_renamed(name, UNET_NAMES): tensor for name, tensor in weights.items()}


def unet_layer_in_file(layer: str) -> str | None:
    """A layer of a `UNet2DConditionModel` by its original name, or None for a layer without one."""
    try:
        return _renamed(layer, UNET_NAMES)
    except KeyError:
        return None


def xl_unet_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """The weights of Stable Diffusion XL's UNet by the original names; KeyError for a name without one."""
    return {_renamed(name, XL_UNET_NAMES): tensor for name, tensor in weights.items()}


def xl_unet_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `xl_unet_to_original`; errors as there."""
    return {_renamed(name, _XL_UNET_BACK): tensor for name, tensor in weights.items()}


def xl_unet_layer_in_file(layer: str) -> str | None:
    """A layer of Stable Diffusion XL's UNet by its original name, or None for a layer without one."""
    try:
        return _renamed(layer, XL_UNET_NAMES)
    except KeyError:
        return None


def unet_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `unet_to_original`; errors as there."""
    return {_renamed(name, _UNET_BACK): tensor for name, tensor in weights.items()}


def vae_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """An `AutoencoderKL`'s weights by the original names; KeyError for a name without one."""
    return {_renamed(name, VAE_NAMES): _as_convolution(name, tensor) for name, tensor in weights.items()}


def vae_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `vae_to_original`; errors as there."""
    named = {_renamed(name, _VAE_BACK): tensor for name, tensor in weights.items()}
    return {name: _as_linear(name, tensor) for name, tensor in named.items()}


def clip_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """A `CLIPTextModel`'s weights, with or without `text_model.` before their names, as in Stable Diffusion 1."""
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in weights.items()}


def clip_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The same weights by the names of transformers 5, without `text_model.`."""
    return {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}


def open_clip_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """A `CLIPTextModel`'s weights as in Stable Diffusion 2; KeyError for an unknown name."""
    return to_open_clip(clip_from_original(weights))


def open_clip_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse, without the last layer of ViT-H, which Stable Diffusion 2 does not use; errors as there."""
    last = f"encoder.layers.{LAYERS_OF_VIT_H - 1}."
    return {name: t for name, t in from_open_clip(weights).items() if not name.startswith(last)}


def projected_to_original(weights: Mapping[str, Tensor]) -> Weights:
    """A `CLIPTextModelWithProjection`'s weights as in Stable Diffusion XL; KeyError for an unknown name."""
    own = dict(weights)
    projection = own.pop(_PROJECTION)
    return to_open_clip(clip_from_original(own)) | {"text_projection": projection.T.contiguous()}


def projected_from_original(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `projected_to_original`, with the names of transformers 5; errors as there."""
    own = dict(weights)
    projection = own.pop("text_projection").T.contiguous()
    return clip_to_original(from_open_clip(own)) | {_PROJECTION: projection}


_PROJECTION = "text_projection.weight"


def to_original(
    networks: Mapping[str, Mapping[str, Tensor]], layout: Mapping[str, OriginalNetwork]
) -> Weights:
    """The weights of all networks by their names in one file.

    Args:
        networks: by component, the weights by the names of diffusers or transformers.
        layout: by component.

    Raises:
        KeyError: a name that the layout does not have.
    """
    found: Weights = {}
    for part, original in layout.items():
        named = original.to_original(networks[part])
        found |= {original.prefix + name: tensor for name, tensor in named.items()}
    return found


def from_original(weights: Mapping[str, Tensor], layout: Mapping[str, OriginalNetwork]) -> dict[str, Weights]:
    """The weights of a file by component, by the names of diffusers or transformers.

    What no network has (schedules, averages, the autoencoder's loss) is skipped; see `left_over`.

    Raises:
        KeyError: a network's weight with a name that the layout does not have.
    """
    return {part: one.from_original(_below(one.prefix, weights)) for part, one in layout.items()}


_PASSED_OVER = (
    "model_ema.", "first_stage_model.loss.", "first_stage_model.model_ema.",
    "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
    "cond_stage_model.transformer.text_projection", "cond_stage_model.transformer.logit_scale",
    "cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale",
    "cond_stage_model.model.attn_mask",
    "betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef", "lvlb_weights", "logvar",
    "scale_factor", "global_step", "v_pred", "ztsnr",
    "conditioner.embedders.0.transformer.text_projection", "conditioner.embedders.0.transformer.logit_scale",
    "conditioner.embedders.0.logit_scale", "conditioner.embedders.0.text_projection",
    "conditioner.embedders.0.model.logit_scale", "conditioner.embedders.1.model.logit_scale",
    "conditioner.embedders.0.model.attn_mask", "conditioner.embedders.1.model.attn_mask", "denoiser.sigmas",
)  # fmt: skip
"""How names of other contents begin: averages, schedules, the unused half of CLIP."""


def is_passed_over(name: str) -> bool:
    """Whether a name in a file is known not to be a weight of a network."""
    return name.startswith(_PASSED_OVER) or name.endswith(".position_ids")


def left_over(names: Iterable[str], layout: Mapping[str, OriginalNetwork]) -> list[str]:
    """The names in a file that belong to no network and are not known to be unimportant."""
    prefixes = tuple(network.prefix for network in layout.values())
    return [name for name in names if not name.startswith(prefixes) and not is_passed_over(name)]


def _below(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """The weights whose names begin with the prefix, by the rest of their names."""
    own = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in own.items() if not is_passed_over(name)}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with its longest beginning that is in the table replaced; only whole words between dots count."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        new = table.get(".".join(words[:end]))
        if new is not None:
            return ".".join([new, *words[end:]])
    raise KeyError(name)


def _unet_names(attends: Sequence[bool] = (True, True, True, False)) -> Iterator[tuple[str, str]]:
    """UNet2DConditionModel's modules. The numbers of a level's blocks continue those of the level before.

    Args:
        attends: for each level from the first down, whether it attends to the prompt.
    """
    yield from {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items()
    for middle in (0, 1):
        yield from _resnet(f"mid_block.resnets.{middle}", f"middle_block.{2 * middle}")
    for level in range(len(attends)):
        block = level * (NUM_RESNETS + 1)
        for i in range(NUM_RESNETS):
            yield from _resnet(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{block + i + 1}.0")
            yield f"down_blocks.{level}.attentions.{i}", f"input_blocks.{block + i + 1}.1"
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block + NUM_RESNETS + 1}.0.op"
        for i in range(NUM_RESNETS + 1):
            yield from _resnet(f"up_blocks.{level}.resnets.{i}", f"output_blocks.{block + i}.0")
            yield f"up_blocks.{level}.attentions.{i}", f"output_blocks.{block + i}.1"
        place = 2 if attends[-1 - level] else 1  # after the attention, where there is one
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{block + NUM_RESNETS}.{place}.conv"


def _resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for inner, original in {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }.items():
        yield f"{ours}.{inner}", f"{theirs}.{original}"


def _vae_names() -> Iterator[tuple[str, str]]:
    """AutoencoderKL's modules. The file numbers the decoder's levels from the image down."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.conv_out", f"{side}.conv_out"))
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield from _vae_attention(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")
        for middle in (0, 1):
            yield from _vae_resnet(f"{side}.mid_block.resnets.{middle}", f"{side}.mid.block_{middle + 1}")
    for level in range(NUM_LEVELS):
        down, up = f"encoder.down.{level}", f"decoder.up.{NUM_LEVELS - 1 - level}"
        for i in range(NUM_RESNETS):
            yield from _vae_resnet(f"encoder.down_blocks.{level}.resnets.{i}", f"{down}.block.{i}")
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv"
        for i in range(NUM_RESNETS + 1):
            yield from _vae_resnet(f"decoder.up_blocks.{level}.resnets.{i}", f"{up}.block.{i}")
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{up}.upsample.conv"


def _vae_resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for inner in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.{inner}", f"{theirs}.{inner}"
    yield f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut"


_VAE_PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.group_norm", f"{theirs}.norm"
    for inner, original in _VAE_PROJECTIONS.items():
        yield f"{ours}.{inner}", f"{theirs}.{original}"


def _is_projection(name: str) -> bool:
    """Whether an autoencoder's weight is a linear layer in diffusers and a 1x1 convolution in the file."""
    return name.endswith(tuple(f".attentions.0.{inner}.weight" for inner in _VAE_PROJECTIONS))


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if _is_projection(name) else tensor


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if _is_projection(name) else tensor


UNET_NAMES, VAE_NAMES = dict(_unet_names()), dict(_vae_names())
_ADDED_NAMES = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
XL_UNET_NAMES = {**dict(_unet_names((False, True, True))), **_ADDED_NAMES}
_XL_UNET_BACK = {original: name for name, original in XL_UNET_NAMES.items()}
_UNET_BACK = {original: name for name, original in UNET_NAMES.items()}
_VAE_BACK = {original: name for name, original in VAE_NAMES.items()}
