"""The wrappers around diffusers' and transformers' networks: shapes, scales, tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from ldm.errors import UserError
from ldm.models.loading.components import load_text_model, load_unet
from ldm.models.loading.model import ModelParts
from ldm.models.unet import UNetDenoiser
from ldm.models.vae import KLAutoencoder
from ldm.types import Conditioning, Step
from tests.support.tiny_models import CONTEXT_LENGTH, make_sd1


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    return make_sd1(tmp_path_factory.mktemp("tokenizer"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def again(network: Any, **changes: Any) -> Any:
    """A network of the same shape with some settings changed and fresh weights."""
    config = {key: value for key, value in network.config.items() if key != "_use_default_values"}
    return type(network).from_config(config | changes).eval()


def test_denoiser_is_the_unet(parts: ModelParts) -> None:
    embeds = Conditioning(normal(2, 16, 32))
    timesteps = torch.tensor([3, 800])
    output = parts.denoiser(normal(2, 4, 8, 8), timesteps, embeds, step=Step(0, 0, 3.0, 0.1))
    expected = parts.denoiser.unet(normal(2, 4, 8, 8), timesteps, embeds.prompt_embeds).sample
    assert torch.equal(output, expected)


def test_denoiser_attends_where_the_mask_allows(parts: ModelParts) -> None:
    mask = torch.ones(1, 16)
    mask[0, 5:] = 0
    changed = normal(1, 16, 32)
    changed[0, 5:] = 9.0
    given = [
        parts.denoiser(normal(1, 4, 8, 8), torch.tensor([3]), Conditioning(embeds, attention_mask=mask))
        for embeds in (normal(1, 16, 32), changed)
    ]
    torch.testing.assert_close(given[0], given[1])


def test_denoiser_keeps_the_dtype_of_its_latents(parts: ModelParts) -> None:
    denoiser = UNetDenoiser(torch.nn.Module.to(again(parts.denoiser.unet), torch.bfloat16))
    output = denoiser(normal(1, 4, 8, 8), torch.tensor([3]), Conditioning(normal(1, 16, 32)))
    assert output.dtype == torch.float32
    assert torch.equal(output, output.bfloat16().float())


def test_unet_of_another_kind_is_refused(parts: ModelParts) -> None:
    unet = again(parts.denoiser.unet, class_embed_type="projection", projection_class_embeddings_input_dim=8)
    with pytest.raises(UserError, match="class_embed_type 'projection'"):
        UNetDenoiser(unet)


@pytest.fixture
def autoencoder(parts: ModelParts) -> KLAutoencoder:
    return KLAutoencoder(again(parts.autoencoder.vae, scaling_factor=0.5, shift_factor=0.25))


def test_moments_are_mean_and_log_variance(autoencoder: KLAutoencoder) -> None:
    pixel_values = normal(2, 3, 16, 16)
    moments = autoencoder.encode(pixel_values)
    posterior = autoencoder.vae.encode(pixel_values).latent_dist
    assert moments.shape == (2, 8, 8, 8)
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.logvar], dim=1))
    noise = normal(2, 4, 8, 8, seed=1)
    expected = (posterior.mean + posterior.std * noise - 0.25) * 0.5
    torch.testing.assert_close(autoencoder.sample_posterior(moments, noise), expected)


def test_extreme_log_variances_are_clamped_as_diffusers_does(autoencoder: KLAutoencoder) -> None:
    moments = torch.cat([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), 1000.0)], dim=1)
    assert autoencoder.sample_posterior(moments, torch.ones(1, 4, 1, 1)).isfinite().all()


def test_decode_undoes_scale_and_shift(autoencoder: KLAutoencoder) -> None:
    unscaled = normal(1, 4, 8, 8)
    pixel_values = autoencoder.decode(autoencoder.scale(unscaled))
    assert pixel_values.shape == (1, 3, 16, 16)
    torch.testing.assert_close(pixel_values, autoencoder.vae.decode(unscaled).sample)


def test_no_shift_factor_is_zero(parts: ModelParts) -> None:
    assert parts.autoencoder.vae.config.shift_factor is None
    assert parts.autoencoder.shift_factor == 0.0
    assert parts.autoencoder.pixels_per_latent == 2


def test_text_encoder_pads_and_cuts(parts: ModelParts) -> None:
    encoder = parts.text_encoder
    long_prompt = "a red apple " * 10
    ids = encoder.tokenize(["", "a red apple", long_prompt])
    assert ids.shape == (3, CONTEXT_LENGTH)
    start, end = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
    assert ids[0].tolist() == [start] + [end] * 15
    assert ids[2, -1] == end
    embeds = encoder(["", "a red apple", long_prompt])
    expected = encoder.model(ids)
    assert torch.equal(embeds.prompt_embeds, expected.last_hidden_state)
    assert embeds.pooled is not None
    assert torch.equal(embeds.pooled, expected.pooler_output)


def test_words_left_out_are_named_as_written(parts: ModelParts) -> None:
    encoder = parts.text_encoder
    assert encoder.truncated_words("a red apple") == ""
    words = ["A"] * 14
    assert encoder.count_tokens(" ".join(words)) == 16
    assert encoder.truncated_words(" ".join(words)) == ""
    assert encoder.truncated_words(" ".join([*words, "RED  Apple", "table"])) == "RED  Apple table"


def test_context_is_the_smaller_of_tokenizer_and_model(parts: ModelParts) -> None:
    encoder = parts.text_encoder
    assert encoder.context_length == CONTEXT_LENGTH
    wide = type(encoder)(encoder.tokenizer, encoder.model)
    try:
        encoder.tokenizer.model_max_length = 10**30  # what transformers says when the tokenizer does not know
        assert wide.context_length == CONTEXT_LENGTH
        assert wide.tokenize(["a"]).shape == (1, CONTEXT_LENGTH)
    finally:
        encoder.tokenizer.model_max_length = CONTEXT_LENGTH


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_models_of_old_and_new_transformers_load(parts: ModelParts, tmp_path: Path, prefix: str) -> None:
    model = parts.text_encoder.model
    model.config.save_pretrained(tmp_path)
    weights = {prefix + name.removeprefix("text_model."): w for name, w in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_text_model(tmp_path, torch.float32)
    assert isinstance(loaded, CLIPTextModel)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["missing", "left over", "wrong shape", "truncated"])
def test_damaged_weights_are_refused(parts: ModelParts, tmp_path: Path, damage: str) -> None:
    parts.denoiser.unet.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["conv_in.weight"]
    elif damage == "left over":
        weights["conv_extra.weight"] = torch.zeros(1)
    elif damage == "wrong shape":
        weights["conv_in.weight"] = torch.zeros(2, 2)
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        load_unet(tmp_path, torch.float32)
    assert "\n" not in str(caught.value)
