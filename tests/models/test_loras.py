"""LoRAs on top of a model: in generation, in an image's record, and read by other programs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from typer.testing import CliRunner, Result

from ldm.cli.app import app
from ldm.errors import UserError
from ldm.models.adapters.fuse import fuse_loras, lora_hash, lora_name, split_weight
from ldm.models.adapters.lora import LoraSettings, LoraWeights
from ldm.models.loading.model import save_parts
from ldm.pipeline.pipeline import Pipeline, load_pipeline
from ldm.pipeline.record import read_settings
from tests.support.tiny_loras import EVERYWHERE, FORMATS, MADE_BY, as_diffusers, as_kohya, trained, uneven
from tests.support.tiny_models import make_sd1, make_sd2

PROMPT = "a red apple"
ATTENTION = LoraSettings(rank=2, alpha=1)
DORA = EVERYWHERE.model_copy(update={"use_dora": True})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_parts(make_sd1(tmp_path), tmp_path / "base")
    return tmp_path / "base"


def noise_and_ours(pipeline: Pipeline) -> tuple[Tensor, Tensor]:
    """Noise [1, 4, 8, 8], and the latents after two steps of DDIM."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = pipeline.generate(PROMPT, latents=noise, num_inference_steps=2, scheduler="ddim", guidance_scale=1)
    return noise, made.latents


def latents(pipeline: Pipeline) -> Tensor:
    return noise_and_ours(pipeline)[1]


def stock_latents(pipe: StableDiffusionPipeline, noise: Tensor) -> Tensor:
    from diffusers import DDIMScheduler

    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    output: Tensor = pipe(
        PROMPT, latents=noise, num_inference_steps=2, guidance_scale=1, output_type="latent"
    ).images
    return output


def read_by_diffusers(base: Path, file: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    return pipe


def read_by_peft(base: Path, folder: Path) -> StableDiffusionPipeline:
    from peft import PeftModel

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    for part in ("unet", "text_encoder"):
        setattr(pipe, part, PeftModel.from_pretrained(getattr(pipe, part), folder / part).merge_and_unload())
    return pipe


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "format", "settings", "changes"),
    [
        (make_sd1, "kohya", EVERYWHERE, True),
        *(
            pytest.param(make, format, settings, changes, marks=pytest.mark.slow)
            for make in MADE_BY
            for format in FORMATS
            for settings, changes in ((EVERYWHERE, False), (EVERYWHERE, True), (DORA, False))
            if (format, settings) != ("kohya", DORA)  # diffusers leaves the lengths out
        ),
    ],
)
def test_other_programs_generate_the_same_image(
    make: Any, format: str, settings: LoraSettings, changes: bool, tmp_path: Path
) -> None:
    """alpha is not the rank; with `changes`, rank and alpha differ between layers."""
    save_parts(make(tmp_path), tmp_path / "base")
    weights = trained(make(tmp_path), settings)
    weights = uneven(weights, make(tmp_path)) if changes else weights
    file = FORMATS[format](weights, tmp_path / "lora" if format != "kohya" else tmp_path)
    noise, ours = noise_and_ours(load_pipeline(tmp_path / "base", loras=[(file, 1.0)]))
    read = read_by_peft if format == "peft" else read_by_diffusers
    torch.testing.assert_close(
        stock_latents(read(tmp_path / "base", file), noise), ours, rtol=1e-3, atol=1e-3
    )
    assert (ours - latents(load_pipeline(tmp_path / "base"))).abs().max() > 0.1


@pytest.mark.slow
def test_the_weight_is_that_of_diffusers(base: Path, tmp_path: Path) -> None:
    file = as_kohya(trained(make_sd1(tmp_path)), tmp_path)
    noise, ours = noise_and_ours(load_pipeline(base, loras=[(file, 0.4)]))
    pipe = read_by_diffusers(base, file)
    pipe.set_adapters(pipe.get_active_adapters(), 0.4)
    torch.testing.assert_close(stock_latents(pipe, noise), ours, rtol=1e-3, atol=1e-3)
    assert torch.equal(latents(load_pipeline(base, loras=[(file, 0.0)])), latents(load_pipeline(base)))


def two_loras(folder: Path, settings: LoraSettings) -> list[LoraWeights]:
    plain = settings.model_copy(update={"text_encoder": False})
    return [trained(make_sd1(folder), plain, seed=1), trained(make_sd1(folder), ATTENTION, seed=2)]


def test_several_are_the_sum_of_what_each_would_change(tmp_path: Path) -> None:
    settings = LoraSettings(rank=2, alpha=5, target_modules=("to_q", "conv1"), use_dora=True)
    weights, plain = two_loras(tmp_path, settings), make_sd1(tmp_path).denoiser.unet

    def changed(*chosen: tuple[int, float]) -> dict[str, Tensor]:
        unet = copy.deepcopy(plain)
        fuse_loras({"unet": unet}, [(weights[i], scale) for i, scale in chosen])
        return {name: t - plain.state_dict()[name] for name, t in unet.state_dict().items()}

    both, one, other = changed((0, 1.0), (1, 0.5)), changed((0, 1.0)), changed((1, 0.5))
    reverse = changed((1, 0.5), (0, 1.0))
    for name, change in both.items():
        torch.testing.assert_close(change, one[name] + other[name], rtol=1e-3, atol=1e-6, msg=name)
        torch.testing.assert_close(change, reverse[name], rtol=1e-3, atol=1e-6, msg=name)


def test_their_order_changes_no_bit(base: Path, tmp_path: Path) -> None:
    weights = two_loras(tmp_path, EVERYWHERE)
    files = [as_diffusers(w, tmp_path / str(i)) for i, w in enumerate(weights)]
    one, other = ([(files[0], 0.7), (files[1], 1.3)][::order] for order in (1, -1))
    pipelines = [load_pipeline(base, loras=loras) for loras in (one, other)]
    assert torch.equal(latents(pipelines[0]), latents(pipelines[1]))
    assert [lora.name for lora in pipelines[0].loras] == ["0", "1"]
    half = load_pipeline(base, loras=one, dtype="bfloat16")
    for name, tensor in half.denoiser.state_dict().items():
        assert torch.equal(tensor, pipelines[0].denoiser.state_dict()[name].bfloat16()), name


def test_a_lora_is_named_after_its_file_or_folder(tmp_path: Path) -> None:
    weights = trained(make_sd1(tmp_path), ATTENTION)
    run = as_diffusers(weights, tmp_path / "my-run" / "pipeline")
    assert {lora_name(path) for path in (run, run.parent, run.parent.parent)} == {"my-run"}
    assert {lora_hash(path) for path in (run, run.parent, run.parent.parent)} == {lora_hash(run)}
    assert lora_name(as_kohya(weights, tmp_path)) == "film"
    peft = FORMATS["peft"](weights, tmp_path / "v1.5")
    assert lora_name(peft) == lora_name(peft / "unet") == "v1.5"
    before = lora_hash(peft)
    config = peft / "unet" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 1', '"lora_alpha": 2'))
    assert lora_hash(peft) != before  # another alpha is another LoRA


def test_file_and_weight(tmp_path: Path) -> None:
    assert split_weight("a/b.safetensors") == (Path("a/b.safetensors"), None)
    assert split_weight("a/b.safetensors:-0.5") == (Path("a/b.safetensors"), -0.5)
    (tmp_path / "take:2").mkdir()
    assert split_weight(str(tmp_path / "take:2")) == (tmp_path / "take:2", None)
    assert split_weight(f"{tmp_path / 'take:2'}:3") == (tmp_path / "take:2", 3)
    for text in ("x.safetensors:much", "x.safetensors:nan"):
        with pytest.raises(
            UserError, match=r"the weight '\w+' in 'x.safetensors:\w+' is not a finite number"
        ):
            split_weight(text)


def generate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments), "--num-inference-steps", "2"])


def test_an_image_names_its_loras_and_is_reproduced(base: Path, tmp_path: Path) -> None:
    weights = two_loras(tmp_path, EVERYWHERE)
    film, other = as_kohya(weights[0], tmp_path), as_diffusers(weights[1], tmp_path / "run" / "pipeline")
    made = generate(
        PROMPT,
        "--model",
        base,
        "--lora",
        f"{film}:0.5",
        "--lora",
        other.parents[1],
        "--output",
        tmp_path / "1",
    )
    assert made.exit_code == 0, made.output
    picture = Path(made.stdout.strip())
    settings = read_settings(picture)
    assert settings["loras"] == [
        {"name": "film", "sha256": lora_hash(film), "weight": 0.5},
        {"name": "run", "sha256": lora_hash(other), "weight": 1.0},
    ]
    assert str(tmp_path) not in str(settings)

    def again(*arguments: object) -> tuple[Result, bytes]:
        result = generate(
            "--reproduce", picture, "--model", base, *arguments, "--output", tmp_path / "2", "--overwrite"
        )
        return result, Path(result.stdout.strip()).read_bytes() if result.exit_code == 0 else b""

    moved = film.rename(
        tmp_path / "renamed.safetensors"
    )  # recognised by its hash, and used with the recorded weight
    result, same = again("--lora", other, "--lora", moved)
    assert result.exit_code == 0 and "warning" not in result.stderr
    assert read_settings(tmp_path / "2" / picture.name)["loras"][1]["weight"] == 0.5
    from PIL import Image, ImageChops

    pictures = [Image.open(p) for p in (picture, tmp_path / "2" / picture.name)]
    assert same and ImageChops.difference(*pictures).getbbox() is None
    result, _ = again()
    assert result.exit_code == 2
    expected = (
        f"was made with the LoRA 'film' at weight 0.5 (hash {lora_hash(moved)[:10]}), 'run' at weight 1"
    )
    assert expected in result.stderr and "--lora FILE" in result.stderr
    result, other_picture = again("--lora", other)
    assert result.exit_code == 0 and other_picture != same
    assert f"warning: {picture} was made with the LoRA 'film' at weight 0.5" in result.stderr


def test_a_bad_lora_is_an_error_of_one_line(base: Path, tmp_path: Path) -> None:
    sd2 = as_diffusers(trained(make_sd2(tmp_path), ATTENTION), tmp_path / "sd2")
    for loras, message in (
        ([(tmp_path / "gone.safetensors", 1.0)], "no LoRA '.*gone.safetensors': name a"),
        ([(sd2, 1.0)], "is it of another model"),
        ([(sd2, float("inf"))], "the weight of .* is inf: it must be a finite number"),
        ([(base / "unet", 1.0)], "does not belong to a LoRA"),
    ):
        with pytest.raises(UserError, match=message):
            load_pipeline(base, loras=loras)
