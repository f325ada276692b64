"""Models that a single file cannot hold, and files that are not models: refused in one line that names the reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.export.formats.single_file import check_structure, write_single_file
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_tokenizer import clip_tokenizer
from ldm.models.families.original_names import (
    UNET_NAMES,
    VAE_NAMES,
    XL_UNET_NAMES,
    from_original,
    to_original,
    unet_to_original,
)
from ldm.models.families.stable_diffusion import SD1, SD2
from ldm.models.families.stable_diffusion_xl import SDXL
from ldm.models.loading.model import load_parts
from ldm.models.parts import ModelParts
from ldm.models.unet import UNetDenoiser
from tests.support.tiny_models import SD1_SCHEDULER, make_sd1, make_tokenizer
from tests.support.tiny_single_file import (
    FOUR_DOWN,
    FOUR_UP,
    make_narrow_sd1,
    make_narrow_sd2,
    make_narrow_sdxl,
)

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."

pytestmark = pytest.mark.filterwarnings("ignore:.* does not say what it predicts. as usual")


@pytest.fixture(scope="module")
def sd1() -> ModelParts:
    return make_narrow_sd1()


@pytest.fixture(scope="module")
def tensors(sd1: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("single") / "m.safetensors"
    write_single_file(sd1, path, dtype=torch.float32, metadata={})
    return load_file(path)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"layers_per_block": 1}, "the unet's layers_per_block is 1, but readers of a single file assume 2"),
        ({"attention_head_dim": 4}, "the unet's attention_head_dim is 4, .* assume 8"),
        ({"use_linear_projection": True}, "the unet's use_linear_projection is True, .* assume False"),
        ({"norm_num_groups": 16}, "the unet's norm_num_groups is 16, .* assume 32"),
        ({"act_fn": "gelu"}, "the unet's act_fn is 'gelu', .* assume 'silu'"),
        ({"in_channels": 5}, "the unet's in_channels is 5, .* assume 4"),
        (
            {"down_block_types": (*FOUR_DOWN[:2], "DownBlock2D", "DownBlock2D")}
            | {"up_block_types": ("UpBlock2D", "UpBlock2D", *FOUR_UP[2:])},
            "the unet's down_block_types is",
        ),
    ],
)
def test_a_unet_of_another_structure_is_refused_by_what_differs(
    sd1: ModelParts, unet: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {k: v for k, v in sd1.denoiser.unet.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        changed = replace(sd1, denoiser=UNetDenoiser(UNet2DConditionModel(**{**config, **unet})))
    with pytest.raises(UserError, match=message):
        write_single_file(changed, tmp_path / "m.safetensors", dtype=torch.float32, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_two_levels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="the unet has 2 levels, but a single file must have 4: export it in the diff"
    ):
        check_structure(make_sd1(tmp_path))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"beta_end": 0.02}, r"beta_end is 0\.02, but readers assume 0\.012"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear', but readers assume 'scaled_linear'"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        ({"prediction_type": "sample"}, "the model predicts 'sample', which no reader supports"),
    ],
)
def test_another_noise_schedule_is_refused(sd1: ModelParts, scheduler: dict[str, Any], message: str) -> None:
    changed = replace(sd1, scheduler_config={**SD1_SCHEDULER, **scheduler})
    with pytest.raises(UserError, match=message):
        check_structure(changed)


def test_another_autoencoder_or_vocabulary_is_refused(sd1: ModelParts, tmp_path: Path) -> None:
    text_model = sd1.text_encoder.model
    tokenizers = {
        r"the tokenizer has its own \d+ tokens": make_tokenizer(tmp_path),
        "prompts are padded with token 0, but readers assume 49407": clip_tokenizer("!"),
    }
    for message, tokenizer in tokenizers.items():
        with pytest.raises(UserError, match=message):
            check_structure(replace(sd1, text_encoder=ClipTextEncoder(tokenizer, text_model)))
    factor = sd1.autoencoder.vae.config.scaling_factor
    sd1.autoencoder.vae.register_to_config(scaling_factor=0.5)
    try:
        with pytest.raises(UserError, match=r"the vae's scaling_factor is 0\.5, .* assume 0\.18215"):
            check_structure(sd1)
    finally:
        sd1.autoencoder.vae.register_to_config(scaling_factor=factor)


def test_the_key_maps_are_complete_and_unique(sd1: ModelParts) -> None:
    for table in (UNET_NAMES, XL_UNET_NAMES, VAE_NAMES):
        assert len(set(table.values())) == len(table)
    sd2 = make_narrow_sd2()
    for parts, family in ((sd1, SD1), (sd2, SD2), (make_narrow_sdxl(), SDXL)):
        assert parts.family is family and family.single_file is not None
        layout = family.single_file.networks
        weights = {name: network.state_dict() for name, network in parts.networks().items()}
        back = from_original(to_original(weights, layout), layout)
        assert list(back) == list(weights) == list(layout)
        for part, given in weights.items():
            assert back[part].keys() == given.keys()
            assert all(torch.equal(back[part][name], given[name]) for name in given)
    with pytest.raises(KeyError, match="lora"):
        unet_to_original({"conv_in.lora_A.weight": torch.zeros(1), "lora.x": torch.zeros(1)})


def without(name: str) -> tuple[str, None]:
    return name, None


def having(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return name, shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{UNET}out.2.bias"), r"the unet's weight conv_out\.bias is missing"),
        (
            without(f"{VAE}encoder.down.2.block.1.conv1.weight"),
            r"the vae's weight encoder.*conv1\.weight is missing",
        ),
        (
            without(f"{CLIP}encoder.layers.1.mlp.fc2.bias"),
            r"the text_encoder's weight .*fc2\.bias is missing",
        ),
        (without(f"{UNET}input_blocks.1.1.proj_in.weight"), r"the weight .*proj_in\.weight is missing"),
        (
            having(f"{UNET}out.2.bias", (5,)),
            r"the unet's weight conv_out\.bias has shape \[5\], here it must be \[4\]",
        ),
        (
            having(f"{UNET}input_blocks.12.0.weight", (5,)),
            r"the weight input_blocks\.12\.0\.weight is not one of this structure",
        ),
        (
            having(f"{UNET}input_blocks.1.1.more.weight", (5,)),
            r"weight down_blocks.*more\.weight is left over",
        ),
        (having("control_model.x", (1,)), r"the weight control_model\.x belongs to no part of the model"),
        (having("conditioner.embedders.0.model.x", (1,)), "is the refiner of Stable Diffusion XL"),
        (having(f"{UNET}input_blocks.0.0.weight", (32, 7, 3, 3)), "takes 7 channels, where latents have 4"),
        (having("scale_factor", (2,)), "scale_factor is not a positive number"),
        (having(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ()), "impossible shapes"),
        (having(f"{UNET}down_blocks.0.resnets.0.conv1.bias", (3,)), "is not one of this structure"),
        (having(f"{UNET}input_blocks.1.0.in_layers.2.bias", (33,)), "the unet cannot be built"),
    ],
)
def test_a_file_of_another_structure_is_refused_by_name(
    tensors: dict[str, Tensor], change: tuple[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    path, (name, shape) = tmp_path / "m.safetensors", change
    changed = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(changed if shape is None else {**changed, name: torch.zeros(shape)}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_parts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is not a single-file model of Stable Diffusion 1, 2 or XL"):
        load_parts(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is not a valid safetensors file"):
        load_parts(path)
