"""T2I-Adapters, IP-Adapters and depth models: equal to diffusers' pipelines, and what must hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionAdapterPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from PIL import Image
from transformers import CLIPImageProcessor

from ldm.errors import UserError
from ldm.io.files import write_tensors
from ldm.models.control.load_ip_adapter import load_image_prompts
from ldm.models.control.load_networks import load_controls
from ldm.models.control.networks import ControlNetwork
from ldm.models.fresh import widen_input
from ldm.models.loading.model import load_parts, save_parts
from ldm.pipeline.pipeline import Pipeline
from tests.support.tiny_controls import hints, ip_weights, make_encoder
from tests.support.tiny_images import (
    NOISE,
    PROMPTS,
    FixedNoise,
    clean_latents,
    photo,
    pixels,
    stock,
    stock_scheduler,
)
from tests.support.tiny_models import make_sd1, make_sd2

pytestmark = pytest.mark.filterwarnings("ignore:.*decode_latents method is deprecated:FutureWarning")

SCHEDULERS = ["ddim", "euler", "dpmpp_2m", "unipc", "pndm", "lms"]
COMMON: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}


def same(ours: list[Image.Image], theirs: list[Image.Image]) -> bool:
    return all(np.abs(pixels(a) - pixels(b)).max() <= 1 for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A tiny SD1 with two T2I-Adapters, one of them for grey images."""
    parts = make_sd1(tmp_path_factory.mktemp("tokenizer"))
    for seed, (kind, channels) in enumerate({"pose": 3, "scribble": 1}.items()):
        torch.manual_seed(seed)
        adapter = T2IAdapter(in_channels=channels, channels=[16, 32], num_res_blocks=1, downscale_factor=2)
        parts.controls[kind] = ControlNetwork(kind, kind, "0" * 64, adapter.eval().requires_grad_(False))
    return Pipeline(parts)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_t2i_adapter_equals_diffusers(adapted: Pipeline, scheduler: str) -> None:
    control = {"pose": [(hint, 0.7) for hint in hints()]}
    ours = adapted.generate(PROMPTS, control=control, scheduler=scheduler, latents=NOISE, **COMMON).images
    theirs = StableDiffusionAdapterPipeline(
        vae=adapted.autoencoder.vae,
        text_encoder=adapted.text_encoder.model,
        tokenizer=adapted.text_encoder.tokenizer,
        unet=adapted.denoiser.unet,
        adapter=adapted.parts.controls["pose"].network,
        scheduler=stock_scheduler(scheduler, adapted.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    made = theirs(
        PROMPTS,
        image=hints(),
        adapter_conditioning_scale=0.7,
        negative_prompt=["", ""],
        latents=NOISE,
        **COMMON,
    ).images
    assert same(ours, made)
    assert not same(ours, adapted.generate(PROMPTS, scheduler=scheduler, latents=NOISE, **COMMON).images)


def test_t2i_adapters_run_once_and_add_up(adapted: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    networks = [adapted.parts.controls[kind].network for kind in ("pose", "scribble")]
    for network in networks:
        network.register_forward_hook(lambda module, inputs, output: calls.append(module))
    control: dict[str, Any] = {"pose": hints()[0], "scribble": (hints()[1], 0.5)}
    both = adapted.generate("a", control=control, latents=NOISE[:1], num_inference_steps=3).latents
    assert calls == networks
    swapped = dict(reversed(control.items()))
    assert torch.allclose(
        adapted.generate("a", control=swapped, latents=NOISE[:1], num_inference_steps=3).latents, both
    )
    zero = adapted.generate(
        "a", control={"pose": (hints()[0], 0.0)}, latents=NOISE[:1], num_inference_steps=2
    )
    assert torch.equal(zero.latents, adapted.generate("a", latents=NOISE[:1], num_inference_steps=2).latents)


def test_their_t2i_pipeline_crosses_images_and_ours_does_not(adapted: Pipeline) -> None:
    """tests/museum/test_crossed_hints.py shows theirs."""
    control = {"pose": hints()}
    noise = torch.cat([NOISE, NOISE.flip(-1)])
    options: dict[str, Any] = {"num_inference_steps": 2, "num_images": 2}
    together = adapted.generate(PROMPTS, control=control, latents=noise, **options).images
    for number, prompt in enumerate(PROMPTS):
        alone = adapted.generate(
            prompt, control={"pose": hints()[number]}, latents=noise[2 * number : 2 * number + 2], **options
        )
        assert same(together[2 * number : 2 * number + 2], alone.images)


# --- IP-Adapter -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path]:
    """A tiny SD1, and a folder with a base and a plus IP-Adapter and their encoder."""
    folder = tmp_path_factory.mktemp("ip")
    parts = make_sd1(folder / "tokenizer")
    make_encoder().save_pretrained(folder / "image_encoder")
    for kind in ("base", "plus"):
        write_tensors(folder / f"{kind}.safetensors", ip_weights(parts, kind))
    return Pipeline(parts), folder


IP_CASES = [("base", name) for name in SCHEDULERS] + [("plus", "ddim"), ("both", "ddim")]


@pytest.mark.parametrize(("kind", "scheduler"), IP_CASES)
def test_ip_adapter_equals_diffusers(prompted: tuple[Pipeline, Path], kind: str, scheduler: str) -> None:
    pipeline, folder = prompted
    kinds = ("base", "plus") if kind == "both" else (kind,)
    files = [folder / f"{each}.safetensors" for each in kinds]
    pipeline.parts.image_prompts = load_image_prompts(files, None, pipeline.parts)
    references, scales = (
        [photo(20, 20, seed=7), photo(20, 20, seed=8)][: len(kinds)],
        [0.6, 0.3][: len(kinds)],
    )
    before = dict(pipeline.denoiser.unet.attn_processors)
    ours = pipeline.generate(
        PROMPTS,
        reference=list(zip(references, scales, strict=True)),
        scheduler=scheduler,
        latents=NOISE,
        **COMMON,
    ).images
    assert (
        pipeline.denoiser.unet.attn_processors == before and pipeline.denoiser.unet.encoder_hid_proj is None
    )
    theirs = stock(StableDiffusionPipeline, pipeline, scheduler)
    theirs.register_modules(
        image_encoder=make_encoder(), feature_extractor=CLIPImageProcessor(size=16, crop_size=16)
    )
    theirs.load_ip_adapter(
        [str(folder)] * len(kinds), subfolder="", weight_name=[file.name for file in files]
    )
    theirs.set_ip_adapter_scale(scales)
    made = theirs(
        PROMPTS,
        ip_adapter_image=references,
        negative_prompt=["", ""],
        latents=NOISE,
        height=16,
        width=16,
        **COMMON,
    ).images
    theirs.unload_ip_adapter()
    assert same(ours, made)
    plain = pipeline.generate(PROMPTS, scheduler=scheduler, latents=NOISE, **COMMON).images
    assert not same(ours, plain)


def test_references_with_scale_zero_and_by_block(prompted: tuple[Pipeline, Path]) -> None:
    pipeline, folder = prompted
    pipeline.parts.image_prompts = load_image_prompts([folder / "base.safetensors"], None, pipeline.parts)
    options: dict[str, Any] = {"latents": NOISE[:1], "num_inference_steps": 2}

    def made(reference: Any) -> torch.Tensor:
        return pipeline.generate("a", reference=reference, **options).latents

    plain = pipeline.generate("a", **options).latents
    assert torch.equal(made((photo(), 0.0)), plain)
    assert torch.equal(made([(photo(), 0.0), (photo(seed=2), 0.0)]), plain)
    whole = made((photo(), 0.5))
    torch.testing.assert_close(made((photo(), {"down": 0.5, "mid": 0.5, "up": 0.5})), whole)
    assert not torch.equal(made((photo(), {"down": 0.5})), whole)
    record = pipeline.generate("a", reference=(photo(), {"down": 0.5}), **options).records[0]
    assert record.controls[0].kind == "reference" and record.controls[0].blocks == {"down": 0.5}
    assert "guess_mode" not in record.to_json()


def test_wrong_references_are_refused(prompted: tuple[Pipeline, Path], tmp_path: Path) -> None:
    pipeline, folder = prompted
    base, plus = folder / "base.safetensors", folder / "plus.safetensors"
    other = make_sd2(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"is an IP-Adapter of another base model: 1\.to_k_ip\.weight"):
        load_image_prompts([base], None, other)
    shuffled = ip_weights(pipeline.parts, "base")
    names = sorted(name for name in shuffled if ".to_k_ip." in name)
    sizes = {name: shuffled[name] for name in names}
    for name, source in zip(names, reversed(names), strict=True):
        shuffled[name] = sizes[source]
    if any(sizes[a].shape != sizes[b].shape for a, b in zip(names, reversed(names), strict=True)):
        write_tensors(tmp_path / "shuffled.safetensors", shuffled)
        with pytest.raises(UserError, match="of another base model"):
            load_image_prompts([tmp_path / "shuffled.safetensors"], folder / "image_encoder", pipeline.parts)
    with pytest.raises(
        UserError, match="has no folder image_encoder: name the image encoder: --image-encoder"
    ):
        write_tensors(tmp_path / "alone.safetensors", ip_weights(pipeline.parts, "base"))
        load_image_prompts([tmp_path / "alone.safetensors"], None, pipeline.parts)
    wide = ip_weights(pipeline.parts, "base") | {"image_proj.proj.weight": torch.zeros(128, 99)}
    write_tensors(tmp_path / "wide.safetensors", wide)
    with pytest.raises(UserError, match="needs an image encoder of width 99, here it is 24"):
        load_image_prompts([tmp_path / "wide.safetensors"], folder / "image_encoder", pipeline.parts)
    shallow = {n: t for n, t in ip_weights(pipeline.parts, "plus").items() if ".layers.3." not in n}
    write_tensors(tmp_path / "shallow.safetensors", shallow)
    with pytest.raises(UserError, match=r"shallow\.safetensors cannot be loaded"):
        load_image_prompts([tmp_path / "shallow.safetensors"], folder / "image_encoder", pipeline.parts)
    (tmp_path / "ip.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"ip\.bin is a pickle"):
        load_image_prompts([tmp_path / "ip.bin"], None, pipeline.parts)
    pipeline.parts.image_prompts = load_image_prompts([base, plus], None, pipeline.parts)
    with pytest.raises(UserError, match="1 reference images for 2 IP-Adapters"):
        pipeline.generate("a", reference=photo())
    with pytest.raises(UserError, match="reference has a scale for 'top': name blocks as"):
        pipeline.generate("a", reference=(photo(), {"top": 1.0}))
    pipeline.parts.image_prompts = None
    with pytest.raises(
        UserError, match="there is no IP-Adapter for reference images: name its file: --ip-adapter"
    ):
        pipeline.generate("a", reference=photo())


# --- depth ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    parts = make_sd2(tmp_path_factory.mktemp("tokenizer"))
    widen_input(parts.denoiser.unet, 5)
    torch.manual_seed(1)
    torch.nn.init.normal_(parts.denoiser.unet.conv_in.weight, std=0.1)
    parts.task = "depth"
    return Pipeline(parts)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_depth_equals_diffusers(deep: Pipeline, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strength = 1.0 if scheduler == "pndm" else 0.5  # tests/museum/test_plms_start.py
    images, maps = [photo(seed=1), photo(seed=2)], hints()
    common = {"num_inference_steps": 6, "guidance_scale": 4.0, "strength": strength}
    ours = deep.generate(
        PROMPTS, image=images, control={"depth": maps}, scheduler=scheduler, latents=NOISE, **common
    ).images
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_depth2img"
    monkeypatch.setattr(f"{module}.randn_tensor", FixedNoise())
    theirs = StableDiffusionDepth2ImgPipeline(
        vae=deep.autoencoder.vae,
        text_encoder=deep.text_encoder.model,
        tokenizer=deep.text_encoder.tokenizer,
        unet=deep.denoiser.unet,
        scheduler=stock_scheduler(scheduler, deep.scheduler_config),
        depth_estimator=None,
        feature_extractor=None,
    )
    theirs.set_progress_bar_config(disable=True)
    monkeypatch.setattr(
        theirs, "prepare_depth_map", _with_size(theirs.prepare_depth_map, images)
    )  # it reads the size from the image, which are latents here
    made = theirs(
        PROMPTS,
        image=clean_latents(deep, images),
        depth_map=torch.stack([torch.tensor(pixels(each)[..., 0] / 255).float() for each in maps]),
        negative_prompt=["", ""],
        **common,
    ).images
    assert same(ours, made)


def _with_size(prepare: Any, images: list[Image.Image]) -> Any:
    return lambda image, *rest: prepare(images, *rest)


def test_depth_maps_are_checked_and_may_be_constant(deep: Pipeline, tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), "grey")
    made = deep.generate("a", control={"depth": flat}, num_inference_steps=1)
    assert made.latents.isfinite().all() and made.records[0].task == ""
    with pytest.raises(UserError, match="trained for depth needs a depth map: give it: --control depth=FILE"):
        deep.generate("a")
    with pytest.raises(UserError, match=r"the scale of control depth is 0\.5, and no ControlNet reads it"):
        deep.generate("a", control={"depth": (flat, 0.5)})
    save_parts(deep.parts, tmp_path / "model")
    (tmp_path / "model/ldm.json").unlink()
    assert load_parts(tmp_path / "model").task == "depth"


def test_adapters_of_other_models_are_refused(adapted: Pipeline, tmp_path: Path) -> None:
    adapted.parts.controls["pose"].network.save_pretrained(tmp_path / "adapter")
    found = load_controls({"pose": tmp_path / "adapter"}, adapted.parts)["pose"]
    assert found.is_adapter and found.name == "adapter"
    T2IAdapter(channels=[16, 32, 32], num_res_blocks=1, downscale_factor=2).save_pretrained(
        tmp_path / "deeper"
    )
    with pytest.raises(UserError, match=r"it has channels \[16, 32, 32\], the unet \[16, 32\]"):
        load_controls({"pose": tmp_path / "deeper"}, adapted.parts)
