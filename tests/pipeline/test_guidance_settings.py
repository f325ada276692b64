"""The setting `guidance`: each way on a tiny model, alone and in a batch, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, PAGIdentitySelfAttnProcessor2_0

from ldm.errors import LdmWarning, UserError
from ldm.models.perturbed_attention import IdentitySelfAttention, PerturbedDenoiser
from ldm.pipeline.guide_model import GuideModel
from ldm.pipeline.pipeline import Generation, Pipeline, load_pipeline
from ldm.pipeline.record import read_record
from ldm.pipeline.settings import GenerationSettings, check_guidance
from tests.support.tiny_models import make_sd1

METHODS = ["cfg", "apg", "cfg-zero", "pag", "autoguidance"]
PROMPTS = ["a red apple", "a blue square"]
STEPS: dict[str, Any] = {"num_inference_steps": 3, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and, under `weak`, one that differs in its UNet."""
    root = tmp_path_factory.mktemp("models")
    parts = make_sd1(root / "tokenizer")
    Pipeline(parts).save(root / "strong")
    with torch.no_grad():
        for weight in parts.denoiser.parameters():
            weight.mul_(0.9)
    Pipeline(parts).save(root / "weak")
    return root


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(folder / "strong", guide_model=folder / "weak", device="cpu")


def made(pipeline: Pipeline, prompts: Any = PROMPTS, **settings: Any) -> Generation:
    return pipeline.generate(prompts, **{**STEPS, **settings})


@pytest.mark.filterwarnings("ignore:the guide model is not used")
@pytest.mark.parametrize("method", METHODS)
def test_each_way_of_guiding(pipeline: Pipeline, method: str) -> None:
    scale: dict[str, Any] = {"guidance": method, "guidance_scale": 4.0}
    together = made(pipeline, **scale)
    assert together.latents.isfinite().all()
    alone = made(pipeline, PROMPTS[1], **scale)
    torch.testing.assert_close(together.latents[1], alone.latents[0], rtol=1e-3, atol=1e-3)
    cfg = made(pipeline, guidance_scale=4.0)
    assert torch.equal(together.latents, cfg.latents) is (method == "cfg")
    one = made(pipeline, guidance_scale=1.0)
    same = {"guidance": method, "guidance_scale": 1.0, **({"pag_scale": 0.0} if method == "pag" else {})}
    assert torch.equal(made(pipeline, **same).latents, one.latents)
    assert together.settings[0].get("guidance", "cfg") == method


@pytest.mark.filterwarnings("ignore:the guide model is not used")
def test_identities(pipeline: Pipeline) -> None:
    cfg = made(pipeline, guidance_scale=4.0).latents
    assert torch.equal(made(pipeline, guidance_scale=4.0, guidance="pag", pag_scale=0.0).latents, cfg)
    everything = {"guidance": "apg", "apg_eta": 1.0, "apg_momentum": 0.0}
    torch.testing.assert_close(
        made(pipeline, guidance_scale=4.0, **everything).latents, cfg, rtol=1e-3, atol=1e-3
    )


@pytest.mark.filterwarnings("ignore:the guide model is not used")
def test_a_model_that_guides_itself_changes_nothing(folder: Path) -> None:
    pipeline = load_pipeline(folder / "strong", device="cpu")
    pipeline.guide_model = GuideModel(pipeline.denoiser, "")
    auto = made(pipeline, guidance="autoguidance", guidance_scale=4.0).latents
    torch.testing.assert_close(auto, made(pipeline, guidance_scale=1.0).latents)


def test_perturbed_attention_is_diffusers_and_leaves_the_unet_as_it_was(pipeline: Pipeline) -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=16, heads=2, dim_head=8)
    states = torch.randn(2, 5, 16)
    attention.set_processor(PAGIdentitySelfAttnProcessor2_0())
    theirs = attention(torch.cat([states, states]))[2:]
    attention.set_processor(IdentitySelfAttention())
    torch.testing.assert_close(attention(states), theirs)
    before = dict(pipeline.denoiser.unet.attn_processors)
    given = (torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), pipeline.text_encoder(PROMPTS))
    plain = pipeline.denoiser(*given)
    assert not torch.equal(PerturbedDenoiser(pipeline.denoiser)(*given), plain)
    assert torch.equal(pipeline.denoiser(*given), plain)
    assert dict(pipeline.denoiser.unet.attn_processors) == before


def test_what_has_no_effect_or_is_missing_is_said(pipeline: Pipeline, folder: Path) -> None:
    with pytest.warns(LdmWarning, match="apg_eta has no effect with guidance autoguidance"):
        made(pipeline, guidance="autoguidance", apg_eta=0.5, num_inference_steps=1)
    with pytest.warns(LdmWarning, match="the guide model is not used with guidance cfg"):
        made(pipeline, num_inference_steps=1)
    with pytest.raises(UserError, match="--guide-model"):
        made(load_pipeline(folder / "strong", device="cpu"), guidance="autoguidance")
    with pytest.raises(UserError, match="use --engine torch"):
        pag = GenerationSettings(guidance="pag")
        check_guidance(pag, pag, has_guide=False, engine="openvino")
    with pytest.raises(UserError, match="cannot guide strong: it has another"):
        load_pipeline(folder / "strong", guide_model="emoji", device="cpu")


def test_the_record_names_the_second_model(pipeline: Pipeline, tmp_path: Path) -> None:
    (path,) = made(pipeline, "a", guidance="autoguidance").save(tmp_path)
    record = read_record(path)
    assert pipeline.guide_model is not None
    assert (record.settings.guidance, record.guide_hash) == (
        "autoguidance",
        pipeline.guide_model.weights_hash,
    )
