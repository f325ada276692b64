"""Families of models: which one a model belongs to, and what it takes to add one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.errors import UserError
from ldm.export.formats.single_file import write_single_file
from ldm.export.verify.inspect import inspect_folder
from ldm.models.adapters.lora import LoraSettings, add_lora, lora_weights
from ldm.models.adapters.lora_files import read_lora_file, write_lora_kohya
from ldm.models.clip import ClipTextEncoder
from ldm.models.clip_pair import ClipTextEncoderPair
from ldm.models.clip_tokenizer import clip_tokenizer
from ldm.models.families.family import Configs, Family, LoraNames, Width
from ldm.models.families.original_names import OPEN_CLIP
from ldm.models.families.registry import family_of_file, family_of_folder, registered
from ldm.models.families.stable_diffusion import CLIP_COMPONENT, SD1, SD2, TOKENIZER_COMPONENT
from ldm.models.fresh import DenoiserShape, make_unet
from ldm.models.loading.folder import weights_hash
from ldm.models.loading.model import ModelParts, load_model, load_parts, save_parts
from ldm.models.loading.source import EMBEDDED
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from tests.support.tiny_loras import disturb
from tests.support.tiny_models import make_sd1, make_sd2, make_tokenizer
from tests.support.tiny_single_file import make_narrow_sd1

PROMPTS = ["a red apple", "a small green circle above"]


def two_encoders(components: Mapping[str, Any], settings: Mapping[str, Any]) -> ClipTextEncoderPair:
    second = ClipTextEncoder(components["tokenizer_2"], components["text_encoder_2"], suffix="_2")
    return ClipTextEncoderPair(components["tokenizer"], components["text_encoder"], second)


def two_widths(configs: Configs) -> Iterator[Width]:
    text = sum(configs[name]["hidden_size"] for name in ("text_encoder", "text_encoder_2"))
    yield Width("text width", configs["unet"]["cross_attention_dim"], text, "text encoders together")


assert SD1.single_file is not None and SD2.single_file is not None
IN_FILE = SD1.single_file.networks
SECOND_IN_FILE = replace(SD2.single_file.networks["text_encoder"], prefix="conditioner.embedders.1.model.")
FIRST_IN_FILE = replace(IN_FILE["text_encoder"], prefix="conditioner.embedders.0.transformer.")

TWO = replace(
    SD1,
    name="two",
    title="Two Text Encoders",
    pipeline_class="StableDiffusionXLPipeline",
    components={**SD1.components, "text_encoder_2": CLIP_COMPONENT, "tokenizer_2": TOKENIZER_COMPONENT},
    text_encoder=two_encoders,
    matches=lambda configs: "text_encoder_2" in configs,
    widths=two_widths,
    lora={
        "unet": LoraNames("lora_unet_"),
        "text_encoder": LoraNames("lora_te1_", is_text=True),
        "text_encoder_2": LoraNames("lora_te2_", is_text=True),
    },
    pipeline_settings={"force_zeros_for_empty_prompt": True},
    time_ids=lambda sizes: (*sizes.original, *sizes.crop, *sizes.target),
    single_file=replace(
        SD1.single_file,
        matches=lambda names: any(name.startswith("conditioner.embedders.1.") for name in names),
        networks={**IN_FILE, "text_encoder": FIRST_IN_FILE, "text_encoder_2": SECOND_IN_FILE},
        tokenizers=lambda: {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer("!")},
    ),
)


@pytest.fixture
def two() -> Iterator[Family]:
    with registered(TWO) as family:
        yield family


def make_text_model(tokenizer: Any, width: int, length: int) -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def with_second_encoder(parts: ModelParts, unet: Any, tokenizer: Any, width: int) -> ModelParts:
    first = parts.text_encoder
    second = make_text_model(tokenizer, width, first.context_length)
    components = {**first.components(), "text_encoder_2": second, "tokenizer_2": tokenizer}
    return replace(parts, denoiser=UNetDenoiser(unet), text_encoder=two_encoders(components, {}).eval())


def make_two(folder: Path) -> ModelParts:
    """A tiny model with a second text encoder of width 24 and a UNet that attends to 32 + 24."""
    shape = DenoiserShape(
        block_out_channels=(16, 32), attention=(True, False), attention_head_dim=8, norm_num_groups=8
    )
    torch.manual_seed(2)
    unet = make_unet(shape, latent_channels=4, latent_size=8, text_width=32 + 24)
    second = make_tokenizer(folder / "second", pad_token="!")
    return with_second_encoder(make_sd1(folder), unet.eval().requires_grad_(False), second, 24)


def assert_same_weights(ours: ModelParts, theirs: ModelParts) -> None:
    first, second = ours.networks(), theirs.networks()
    assert first.keys() == second.keys()
    for name, network in first.items():
        expected = second[name].state_dict()
        assert network.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items()), name


def test_models_are_recognised_by_their_configurations(tmp_path: Path) -> None:
    for make, family in ((make_sd1, SD1), (make_sd2, SD2)):
        parts = make(tmp_path)
        save_parts(parts, tmp_path / family.name)
        assert parts.family is family_of_folder(tmp_path / family.name) is family
    assert family_of_folder(EMBEDDED["emoji"]).components == SD1.components
    assert family_of_folder(tmp_path / "nothing") is SD1
    assert family_of_file(["model.diffusion_model.out.0.bias", f"{OPEN_CLIP}ln_final.bias"]) is SD2
    assert family_of_file(["lora_unet_x.alpha"]) is None


def test_a_family_with_a_second_text_encoder_is_saved_loaded_and_encodes_text(
    two: Family, tmp_path: Path
) -> None:
    parts = make_two(tmp_path)
    save_parts(parts, tmp_path / "m", max_shard_size="20KB")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModel"]
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
    assert index["force_zeros_for_empty_prompt"] is True and "requires_safety_checker" not in index
    back = load_parts(tmp_path / "m")
    assert back.family is two
    assert_same_weights(back, parts)
    assert back.components()["tokenizer_2"].pad_token == "!" != back.components()["tokenizer"].pad_token
    said, expected = back.text_encoder(PROMPTS), parts.text_encoder(PROMPTS)
    assert said.prompt_embeds.shape == (2, 16, 56) and said.pooled is not None
    assert torch.equal(said.prompt_embeds, expected.prompt_embeds)
    second = ClipTextEncoder(parts.components()["tokenizer_2"], parts.networks()["text_encoder_2"])
    assert torch.equal(said.prompt_embeds[..., 32:], second(PROMPTS).prompt_embeds)
    pipelines = [load_pipeline(tmp_path / "m", device="cpu"), Pipeline(parts)]
    images = [pipeline.generate(PROMPTS[0], seed=1, num_inference_steps=2).latents for pipeline in pipelines]
    assert torch.equal(*images)


def test_a_unet_with_time_ids_is_told_the_size(two: Family, tmp_path: Path) -> None:
    """The whole path, from prompts to the prediction, against a call of the UNet by hand."""
    parts = make_two(tmp_path)
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(
        parts.denoiser.unet.config,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    save_parts(replace(parts, denoiser=UNetDenoiser(unet.eval())), tmp_path / "m")
    loaded, latents, timesteps = load_parts(tmp_path / "m"), torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    conditioning = loaded.encode(PROMPTS, size=(16, 24), original=(40, 48), crop=(2, 3))
    with torch.no_grad():
        said = loaded.denoiser(latents, timesteps, conditioning)
        text = parts.text_encoder(PROMPTS)
        added = {"text_embeds": text.pooled, "time_ids": torch.tensor([[40.0, 48, 2, 3, 16, 24]] * 2)}
        theirs = unet(latents, timesteps, text.prompt_embeds, added_cond_kwargs=added).sample
        other = loaded.denoiser(latents, timesteps, loaded.encode(PROMPTS, size=(16, 16)))
    assert torch.equal(said, theirs) and not torch.equal(said, other)
    assert make_sd1(tmp_path).encode(PROMPTS, size=(16, 24)).time_ids is None


def test_a_unet_with_more_input_channels_is_loaded_and_called(tmp_path: Path) -> None:
    """As for inpainting: latents, a mask and masked latents, against a call of the UNet by hand."""
    shape = DenoiserShape(
        block_out_channels=(16, 32), attention=(True, False), attention_head_dim=8, norm_num_groups=8
    )
    unet = make_unet(shape, latent_channels=4, concat_channels=5, latent_size=8, text_width=32).eval()
    parts = replace(make_sd1(tmp_path), denoiser=UNetDenoiser(unet))
    save_parts(parts, tmp_path / "m")
    loaded = load_parts(tmp_path / "m")
    assert (loaded.denoiser.latent_channels, loaded.denoiser.concat_channels) == (4, 5)
    latents, concat, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.tensor([10, 700])
    text = loaded.encode(PROMPTS, size=(16, 16))
    with torch.no_grad():
        said = loaded.denoiser(latents, timesteps, replace(text, concat=concat))
        theirs = unet(torch.cat([latents, concat], dim=1), timesteps, text.prompt_embeds).sample
    assert torch.equal(said, theirs)
    odd = make_unet(shape, latent_channels=3, concat_channels=5, latent_size=8, text_width=32)
    save_parts(replace(parts, denoiser=UNetDenoiser(odd)), tmp_path / "odd")
    with pytest.raises(UserError, match="the unet has latent channels 3, the vae 4"):
        load_parts(tmp_path / "odd")


def test_every_component_of_a_family_is_checked(two: Family, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_parts(make_two(tmp_path), folder)
    assert not [finding for finding in inspect_folder(folder) if finding.severity == "error"]
    weights = folder / "text_encoder_2" / "model.safetensors"
    before, data = weights_hash(folder), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert weights_hash(folder) != before
    config = folder / "text_encoder_2" / "config.json"
    text = config.read_text()
    for changed, message in (
        (text.replace('"hidden_size": 24', '"hidden_size": 24000'), "text_encoder_2: config.json asks for"),
        (text.replace("{", '{"auto_map": {"a": "b"},', 1), "has the key 'auto_map'"),
    ):
        config.write_text(changed)
        with pytest.raises(UserError, match=message):
            load_parts(folder)
    config.write_text(text)
    weights.unlink()
    with pytest.raises(UserError, match=r"text_encoder_2 has no model\.safetensors"):
        load_parts(folder)


def test_components_of_a_family_must_fit_each_other(two: Family, tmp_path: Path) -> None:
    parts = make_two(tmp_path)
    narrow = with_second_encoder(parts, parts.denoiser.unet, parts.components()["tokenizer_2"], 16)
    save_parts(narrow, tmp_path / "m")
    with pytest.raises(UserError, match="the unet has text width 56, the text encoders together 48"):
        load_parts(tmp_path / "m")


def test_a_family_that_is_not_registered_is_refused_by_its_component(tmp_path: Path) -> None:
    with registered(TWO):
        save_parts(make_two(tmp_path), tmp_path / "m")
    with pytest.raises(UserError, match="text_encoder_2 is a CLIPTextModel"):  # SDXL's has a projection
        load_parts(tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    index.write_text(index.read_text().replace("{", '{"prior": ["diffusers", "PriorTransformer"],', 1))
    with pytest.raises(UserError, match="prior is a component that is not supported"):
        load_parts(tmp_path / "m")


def test_a_lora_changes_the_second_text_encoder(two: Family, tmp_path: Path) -> None:
    save_parts(make_two(tmp_path), tmp_path / "m")
    live, file = make_two(tmp_path), tmp_path / "lora.safetensors"
    networks = live.lora_networks()
    assert list(networks) == ["unet", "text_encoder", "text_encoder_2"]
    add_lora(networks, LoraSettings(rank=2, alpha=4, text_encoder=True), seed=0)
    disturb(networks)
    write_lora_kohya(lora_weights(networks), file, lora=two.lora)
    prefixes = {name.split("_")[1] for name in load_file(file)}
    assert prefixes == {"unet", "te1", "te2"}
    loaded = load_model(tmp_path / "m", loras=[(file, 1.0)])
    embeds: list[Tensor] = [parts.text_encoder(PROMPTS).prompt_embeds for parts in (loaded.parts, live)]
    torch.testing.assert_close(*embeds)
    plain = load_parts(tmp_path / "m")
    assert (plain.text_encoder(PROMPTS).prompt_embeds - embeds[0])[..., 32:].abs().max() > 0.01
    with pytest.raises(UserError, match="is a LoRA of Stable Diffusion XL"):
        read_lora_file(file, make_sd1(tmp_path).lora_networks())


@pytest.mark.filterwarnings("ignore:m.safetensors does not say what it predicts:ldm.errors.LdmWarning")
def test_a_single_file_of_another_family_comes_back_complete(two: Family, tmp_path: Path) -> None:
    narrow = make_narrow_sd1(cross_attention_dim=64 + 64)
    parts = with_second_encoder(narrow, narrow.denoiser.unet, clip_tokenizer("!"), 64)
    assumed = {**IN_FILE["unet"].assumed_settings(parts.configs()), "cross_attention_dim": 128}
    unet = replace(IN_FILE["unet"], assumed_settings=lambda configs: assumed)
    second = replace(SECOND_IN_FILE, assumed_settings=lambda configs: {})
    assert two.single_file is not None
    layout = replace(
        two.single_file, networks={**two.single_file.networks, "unet": unet, "text_encoder_2": second}
    )
    with registered(replace(two, single_file=layout)):
        write_single_file(parts, tmp_path / "m.safetensors", dtype=torch.float32, metadata={})
        names = load_file(tmp_path / "m.safetensors")
        assert "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias" in names
        assert "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight" in names
        back = load_parts(tmp_path / "m.safetensors")
    assert_same_weights(back, parts)
    assert back.components()["tokenizer_2"].pad_token == "!"
