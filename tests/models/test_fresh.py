"""Shapes that cannot be built are refused in the settings; all others are built."""

from typing import Any

import pytest

from ldm.config import Settings, validate
from ldm.errors import UserError
from ldm.models.fresh import AutoencoderShape, DenoiserShape, make_autoencoder, make_unet


@pytest.mark.parametrize(
    ("kind", "tree", "said"),
    [
        (DenoiserShape, {"block_out_channels": [16, 32]}, "attention has 3 levels, block_out_channels 2"),
        (DenoiserShape, {"attention": [True]}, "attention has 1 levels, block_out_channels 3"),
        (DenoiserShape, {"norm_num_groups": 24}, "norm_num_groups = 24 does not divide 64 of block_out"),
        (AutoencoderShape, {"block_out_channels": [4, 8]}, "norm_num_groups = 8 does not divide 4 of block"),
        (AutoencoderShape, {"block_out_channels": [8, 0]}, "block_out_channels.1 = 0"),
    ],
)
def test_a_shape_that_cannot_be_built_is_one_line(
    kind: type[Settings], tree: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(kind, tree)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("attention_head_dim", [1, 7, 64])
def test_an_accepted_shape_is_built(attention_head_dim: int) -> None:
    shape = {"block_out_channels": [8, 24], "attention": [True, False], "norm_num_groups": 4}
    unet = make_unet(
        validate(DenoiserShape, {**shape, "attention_head_dim": attention_head_dim}),
        latent_channels=3,
        latent_size=4,
        text_width=8,
    )
    assert unet.config.block_out_channels == (8, 24)
    settings = validate(AutoencoderShape, {"block_out_channels": [8, 24], "norm_num_groups": 4})
    assert make_autoencoder(settings, 16).config.block_out_channels == (8, 24)
