"""A tiny SDXL as a folder: saved, loaded, told sizes, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from ldm.errors import UserError
from ldm.models.families.registry import family_of_folder
from ldm.models.families.stable_diffusion_xl import SDXL, SDXL_REFINER
from ldm.models.identity import changed_parts, identity_of
from ldm.models.loading.model import load_parts, save_parts
from ldm.models.unet import UNetDenoiser
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_record
from tests.support.tiny_images import photo, pixels
from tests.support.tiny_models import make_refiner, make_sd1, make_sdxl

PROMPTS = ["a red apple", "a small green circle above", ""]
LONG = "a red apple on a table, a large blue square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sdxl")
    save_parts(make_sdxl(made / "tokenizers"), made / "m", max_shard_size="30KB")
    return made / "m"


def test_it_is_a_stock_folder_that_comes_back_whole(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["force_zeros_for_empty_prompt"] is True and index["add_watermarker"] is False
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    back, stock = load_parts(folder), StableDiffusionXLPipeline.from_pretrained(folder)
    assert family_of_folder(folder) is back.family is SDXL
    for name, network in back.networks().items():
        theirs = getattr(stock, name).state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in network.state_dict().items()), name
    assert [back.components()[f"tokenizer{n}"].pad_token for n in ("", "_2")] == ["<|endoftext|>", "!"]
    (folder / "ldm.json").rename(folder / "ldm.txt")  # a stock folder has none
    try:
        assert load_parts(folder).defaults.guidance_scale == 5.0
    finally:
        (folder / "ldm.txt").rename(folder / "ldm.json")


def test_embeddings_are_those_of_the_stock_pipeline(folder: Path) -> None:
    parts, stock = load_parts(folder), StableDiffusionXLPipeline.from_pretrained(folder)
    with torch.no_grad():
        said = parts.text_encoder(PROMPTS[:2])
        embeds, zeros, pooled, pooled_zeros = stock.encode_prompt(PROMPTS[:2], device=torch.device("cpu"))
        empty = parts.text_encoder(PROMPTS)
    assert said.pooled is not None and empty.pooled is not None
    torch.testing.assert_close(said.prompt_embeds, embeds)
    torch.testing.assert_close(said.pooled, pooled)
    assert torch.equal(empty.prompt_embeds[2:], zeros[:1]) and torch.equal(empty.pooled[2:], pooled_zeros[:1])
    assert not zeros.any() and not pooled_zeros.any()


@pytest.mark.parametrize("rule", ["none", "a1111", "comfy"])
def test_long_and_weighted_prompts_reach_both_encoders(folder: Path, rule: str) -> None:
    pipeline = load_pipeline(folder, device="cpu")
    settings: dict[str, Any] = {
        "num_inference_steps": 1,
        "max_prompt_chunks": 3,
        "prompt_weights": rule,
        "seed": 1,
    }
    weighted = LONG if rule == "none" else LONG.replace("table", "(table:1.5)")
    whole, cut, changed = (
        pipeline.generate(text, **settings).latents for text in (LONG, LONG.rpartition(",")[0], weighted)
    )
    assert not torch.equal(whole, cut)  # type: ignore[arg-type]
    assert torch.equal(whole, changed) == (rule == "none")  # type: ignore[arg-type]
    encoder = pipeline.text_encoder
    assert encoder.chunks_needed(LONG) > 1
    said = encoder([LONG], 3)
    assert said.prompt_embeds.shape == (1, 3 * 16, 32 + 24)
    for each, part in zip(encoder.encoders, said.prompt_embeds.split([32, 24], dim=-1), strict=True):
        assert torch.equal(part, each.embed(each.tokenize([LONG], 3)).prompt_embeds)


def test_another_setting_for_empty_prompts_is_another_model(folder: Path) -> None:
    parts, index = load_parts(folder), folder / "model_index.json"
    text, before = index.read_text(), identity_of(parts, folder)
    index.write_text(
        text.replace('"force_zeros_for_empty_prompt": true', '"force_zeros_for_empty_prompt": false')
    )
    try:
        other = load_parts(folder)
        after = identity_of(other, folder)
    finally:
        index.write_text(text)
    assert other.text_encoder([""]).prompt_embeds.any()
    assert changed_parts(before.parts, after.parts) == ["settings"]


def test_sizes_are_recorded_if_they_are_changed_and_reproduced(folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(folder, device="cpu")
    settings = {"seed": 3, "num_inference_steps": 1, "original_size": (40, 24), "negative_crop": (0, 2)}
    made = pipeline.generate("a red apple", prompt_2="a table", **settings)  # type: ignore[arg-type]
    (path,) = made.save(tmp_path)
    record = read_record(path)
    assert made.settings[0]["original_size"] == [40, 24] and made.settings[0]["prompt_2"] == "a table"
    assert "target_size" not in made.settings[0]
    again = pipeline.generate(record.prompt, settings=record.settings, seed=3)
    assert torch.equal(made.latents, again.latents)  # type: ignore[arg-type]


def test_the_refiner_has_one_text_encoder(tmp_path: Path) -> None:
    save_parts(make_refiner(tmp_path / "tokenizer"), tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["text_encoder"] == [None, None] and index["requires_aesthetics_score"] is True
    back = load_pipeline(tmp_path / "m", device="cpu")
    assert back.parts.family is SDXL_REFINER
    made = [
        back.generate("a", image=photo(), seed=1, num_inference_steps=2, aesthetic_score=score).latents
        for score in (6.0, 9.0)
    ]
    assert not torch.equal(*made)  # type: ignore[arg-type]


def test_what_a_model_is_not_told_is_refused(folder: Path, tmp_path: Path) -> None:
    sd1, sdxl = Pipeline(make_sd1(tmp_path)), load_pipeline(folder, device="cpu")
    for pipeline, settings, message in (
        (
            sd1,
            {"original_size": (40, 24)},
            "original_size has no effect on this model, which is not told sizes",
        ),
        (sd1, {"prompt_2": "a"}, "prompt_2 has no effect on this model, which is not told a second prompt"),
        (sdxl, {"aesthetic_score": 7.0}, "aesthetic_score has no effect on this model"),
        (sdxl, {"crop": (-1, 0)}, "crop is"),
        (sdxl, {"original_size": (0, 5)}, "original_size is"),
        (sdxl, {"target_size": (1.5, 5)}, "target_size is"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.generate("a", num_inference_steps=1, **settings)  # type: ignore[arg-type]


def test_parts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    parts = make_sdxl(tmp_path)
    from diffusers import UNet2DConditionModel

    for settings, message in (
        ({"cross_attention_dim": 48}, "text width 48, the text encoders together 56"),
        (
            {"projection_class_embeddings_input_dim": 60},
            "a width of 60, the pooled text and 6 time ids together 68",
        ),
    ):
        unet = UNet2DConditionModel.from_config(parts.denoiser.unet.config, **settings)
        save_parts(replace(parts, denoiser=UNetDenoiser(unet)), tmp_path / "m", replace=True)
        with pytest.raises(UserError, match=message):
            load_parts(tmp_path / "m")


WAYS: dict[str, dict[str, Any]] = {
    "sizes": {"negative_original_size": (4, 4), "crop": (0, 3), "negative_crop": (0, 0)},
    "second prompts": {"prompt_2": "a table", "negative_prompt_2": "blue"},
    "deep features": {"deep_features_every": 2},
    "perturbed attention": {"guidance": "pag"},
    "projected guidance": {"guidance": "apg"},
    "joined and changing prompts": {"prompt_weights": "comfy", "negative_prompt": "[red:blue:0.5]"},
    "between prompts": {"to_prompt": "a large square", "frame": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_the_same_alone_and_in_a_batch(folder: Path, way: str) -> None:
    """Whatever else is set; and what is set changes it."""
    pipeline, settings = load_pipeline(folder, device="cpu"), {"num_inference_steps": 3, **WAYS[way]}
    joined = " AND a (table:1.4)" if way.startswith("joined") else ""
    prompts = [f"{prompt}{joined}" for prompt in ("a red apple", "a small circle", "a large square")]
    together = pipeline.generate(prompts, seeds=[1, 2, 3], **settings)
    rule = settings.get("prompt_weights", "none")
    plain = pipeline.generate(prompts[0], seed=1, num_inference_steps=3, prompt_weights=rule)
    assert not torch.equal(together.latents[0], plain.latents[0])
    for row, prompt in enumerate(prompts):
        alone = pipeline.generate(prompt, seed=row + 1, **settings)
        difference = pixels(alone.images[0]) - pixels(together.images[row])
        assert np.abs(difference).max() <= 1
